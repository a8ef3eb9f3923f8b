"""The server from its first request to its last: slow and silent connections, SIGTERM, the end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fvit.errors import FvitError
from fvit.service.problems import MEDIA_TYPE, Problem
from fvit.service.wire import App, Life, log

HEAD_SECONDS = 10.0
"""How long the head of a request may take, and what is sent after an answer that needed no more of it."""

CONNECTIONS = 4096
"""Connections beyond these are answered 503 and closed."""


class Protocol(H11Protocol):
    """uvicorn's, with a clock for silent connections and problems for what is no HTTP."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._refuse(Problem(503, "busy", "too many connections: ask again later", retry_after=5))
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._clock is not None:
            self._clock.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What h11 cannot read."""
        self._refuse(Problem(400, "invalid-request", "this is no HTTP/1.1 request"))

    def _watch(self) -> None:
        under_way = self.cycle is not None and not self.cycle.response_complete
        if under_way or self.timeout_keep_alive_task is not None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None
        elif self._clock is None:
            self._clock = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _refuse(self, problem: Problem) -> None:
        body = problem.body()
        headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), "connection": "close"}
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is under way: it has to do
            response = h11.Response(
                status_code=problem.status, headers=[*headers.items(), *problem.headers.items()]
            )
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, *, on_ready: Callable[[], Any]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are Life's: the port has to stay open while what runs is finished."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, not yet listening. Raises FvitError where it cannot be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        raise FvitError(f"port {port} of {host} cannot be had: {error}") from error
    return bound


async def serve(app: App, bound: socket.socket, life: Life, *, on_ready: Callable[[], Any]) -> None:
    """Answer at the socket until SIGTERM or SIGINT; then finish what runs within life.drain seconds.

    on_ready: called when it listens. While it stops whoever comes is answered 503, and so is what is not done
    at the end. A second signal ends it at once.
    """
    config = uvicorn.Config(
        app, http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = _Server(config, on_ready=on_ready)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if life.stops.is_set():
            _cancel(life)
        life.stops.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    serving = asyncio.ensure_future(server.serve(sockets=[bound]))
    stopped = asyncio.ensure_future(life.stops.wait())
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if life.stops.is_set():
        log(event="stopping", open=len(life.tasks), drain=life.drain)
        await _until_idle(life)
        _cancel(life)
        await _until_idle(Life(2.0, life.stops, life.tasks))
        server.should_exit = True
    await serving
    stopped.cancel()


async def _until_idle(life: Life) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + life.drain
    while life.tasks and (left := end - loop.time()) > 0:
        await asyncio.wait(set(life.tasks), timeout=left)


def _cancel(life: Life) -> None:
    tasks: set[asyncio.Task[Any]] = set(life.tasks)
    for task in tasks:
        task.cancel()
