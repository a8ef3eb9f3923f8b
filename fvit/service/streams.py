"""Certificates as they grow, over HTTP: server-sent events or lines of JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fvit.certificates.record import Certificate
from fvit.errors import FvitError
from fvit.service.asked import left
from fvit.service.problems import Problem, stopping
from fvit.service.wire import ClientGone, Receive, Scope, Send

EVENTS, LINES = "text/event-stream", "application/x-ndjson"

BEAT = 10.0
"""Seconds of silence after which an event stream says that it lives, before a proxy closes it."""

PATIENCE = 30.0
"""Seconds that a client may take to read what has been written."""


class Stream(Response):
    """The certificates of a refinement, from the first, which is there already.

    Ends with the last of `shown`, at `until` by the event loop's clock, or with a problem; and the refinement
    with it.
    """

    def __init__(
        self,
        request: Request,
        first: Certificate,
        shown: AsyncGenerator[Certificate, None],
        *,
        kind: str,
        until: float | None,
        on_end: Callable[[Certificate], Any],
    ) -> None:
        super().__init__(media_type=kind, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request, self._shown, self._kind, self._until = request, shown, kind, until
        self._last, self._on_end = first, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(left(self._request))
        self._send = send
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._show(self._last)
            await self._follow(gone)
            await self._write(b"", more=False)
        except ClientGone:
            self._request.state.entry.gone = True
        except FvitError as error:
            await self._end_with(Problem(503, "engine-failed", str(error)))
        except asyncio.CancelledError:
            await self._end_with(stopping(1))
        finally:
            gone.cancel()
            await self._shown.aclose()
            self._on_end(self._last)

    async def _follow(self, gone: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        coming: asyncio.Future[Certificate] = asyncio.ensure_future(anext(self._shown))
        try:
            while True:
                time = BEAT if self._until is None else min(BEAT, self._until - loop.time())
                either: set[asyncio.Future[Any]] = {coming, gone}
                await asyncio.wait(either, timeout=max(0.0, time), return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    raise ClientGone
                if coming.done():
                    try:
                        await self._show(coming.result())
                    except StopAsyncIteration:
                        return
                    coming = asyncio.ensure_future(anext(self._shown))
                elif self._until is not None and loop.time() >= self._until:
                    return
                elif self._kind == EVENTS:
                    await self._write(b": more copies are being drawn\n\n")
        finally:
            coming.cancel()
            await asyncio.wait({coming})

    async def _show(self, certificate: Certificate) -> None:
        self._last = certificate
        await self._say("certificate", json.dumps(certificate.to_dict(), separators=(",", ":")))

    async def _end_with(self, problem: Problem) -> None:
        with suppress(ClientGone):
            await self._say("problem", problem.body().decode())
            await self._write(b"", more=False)

    async def _say(self, event: str, data: str) -> None:
        text = f"event: {event}\ndata: {data}\n\n" if self._kind == EVENTS else data + "\n"
        await self._write(text.encode())

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        try:
            await asyncio.wait_for(
                self._send({"type": "http.response.body", "body": data, "more_body": more}), PATIENCE
            )
        except asyncio.TimeoutError:
            raise ClientGone from None
