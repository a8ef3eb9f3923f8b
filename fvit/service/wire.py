"""Around every request: its id, its line in the log, its metrics, and an answer whatever happens."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeAlias

from fvit.service.metrics import Metrics
from fvit.service.problems import MEDIA_TYPE, Problem, stopping

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

ALWAYS = ("/healthz", "/readyz", "/metrics")
"""Answered also while the service stops."""

GONE = 499
"""What the log calls the status of a request whose client left; nginx has it so."""


class ClientGone(Exception):
    """Nobody is left to be answered."""


@dataclass
class Entry:
    """What a request's line in the log says. waiting, computing: seconds. copies: of the answer. gone:
    the client left before it."""

    id: str
    started: float = field(default_factory=time.perf_counter)
    endpoint: str = "other"
    model: str = ""
    key: str | None = None
    n: int | None = None
    copies: int | None = None
    waiting: float | None = None
    computing: float | None = None
    gone: bool = False

    @property
    def elapsed(self) -> float:
        """Seconds since the request's head."""
        return time.perf_counter() - self.started


@dataclass
class Life:
    """Whether the service stops, and what is under way. drain: seconds that this then has."""

    drain: float
    stops: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


def log(**what: Any) -> None:
    """One JSON line on standard output."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, **{k: v for k, v in what.items() if v is not None}})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Wire:
    """The outermost layer of the application."""

    def __init__(self, app: App, *, life: Life, metrics: Metrics) -> None:
        self._app, self._life, self._metrics = app, life, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        entry = Entry(_request_id(scope))
        scope.setdefault("state", {})["entry"] = entry
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", entry.id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        failed: BaseException | None = None
        task = asyncio.current_task()
        assert task is not None
        refused = self._life.stops.is_set() and scope["path"] not in ALWAYS
        if not refused:
            self._life.tasks.add(task)
        self._metrics.open.inc()
        try:
            if refused:
                await answer(sending, stopping(self._life.drain), entry)
            else:
                await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            if not status:
                await answer(sending, stopping(1), entry)
        except Exception as error:
            failed = error
            if not status:
                await answer(sending, Problem(500, "internal", "this is a fault of the service's"), entry)
        finally:
            self._life.tasks.discard(task)
            self._metrics.open.dec()
            self._note(scope, entry, status=GONE if entry.gone else status, failed=failed)

    def _note(self, scope: Scope, entry: Entry, *, status: int, failed: BaseException | None) -> None:
        outcome = "ok" if status < 400 else "refused" if status < 500 else "failed"
        self._metrics.requests.labels(entry.endpoint, entry.model, str(status)).inc()
        self._metrics.seconds.labels(entry.endpoint, entry.model, outcome).observe(entry.elapsed)
        if entry.waiting is not None:
            self._metrics.waiting.labels(entry.endpoint, entry.model).observe(entry.waiting)
        log(
            event="request", id=entry.id, method=_method(scope), endpoint=entry.endpoint,
            model=entry.model or None, key=entry.key, n=entry.n, copies=entry.copies,
            waiting=_rounded(entry.waiting), computing=_rounded(entry.computing),
            seconds=_rounded(entry.elapsed), status=status, fault=failed and where(failed),
        )  # fmt: skip


async def answer(send: Send, problem: Problem, entry: Entry) -> None:
    """A problem as a whole response."""
    body = problem.body(request_id=entry.id)
    headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), **problem.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def where(error: BaseException) -> str:
    """An error by its type and place: its message might quote what a client sent."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{type(error).__name__} at " + " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames))


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _method(scope: Scope) -> str:
    method = scope["method"]
    return method if method in ("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH") else "other"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
