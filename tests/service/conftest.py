import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

LIMIT = 60.0
"""Seconds after which a test says that the service hangs."""

FAULTY = Path(__file__).parent / "faulty.py"


class Serving:
    """fvit-serve with the embedded bundle in a process of its own. lines: of its log so far."""

    def __init__(self, *options: str, program: Path | None = None) -> None:
        start = ["-c", "from fvit.commands import serve; serve()"] if program is None else [str(program)]
        anywhere = () if "--port" in options else ("--port", "0")
        self.process = subprocess.Popen(
            [sys.executable, *start, "demo", *options, *anywhere],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self._changed = threading.Condition()
        for target in (self._follow, self._listen):
            threading.Thread(target=target, daemon=True).start()
        ready = self.wait_for(lambda line: line["event"] == "ready")
        self.address: str = ready["address"]
        self.port = int(self.address.rpartition(":")[2])
        self.client = httpx.Client(base_url=self.address, timeout=LIMIT)

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line of the log that is wanted."""

        def found() -> bool:
            return any(map(wanted, self.lines)) or self.process.poll() is not None

        with self._changed:
            assert self._changed.wait_for(found, LIMIT), "the service says nothing of it"
        return next(line for line in list(self.lines) if wanted(line))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            sample = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if sample and sample[1] == name:
                found = dict(re.findall(r'(\w+)="([^"]*)"', sample[2] or ""))
                total += float(sample[3]) if labels.items() <= found.items() else 0.0
        return total

    def until(self, name: str, good: Callable[[float], bool], **labels: str) -> None:
        """Ask for a metric until it is good."""
        end = time.monotonic() + LIMIT
        while not good(found := self.metric(name, **labels)):
            assert time.monotonic() < end, f"{name} stays at {found}"

    def _follow(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        self.complaints.extend(self.process.stderr)


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Serving]]:
    """Starts services, which end with the tests."""
    with ExitStack() as stack:

        def start(*options: str, program: Path | None = None) -> Serving:
            serving = Serving(*options, program=program)
            stack.callback(serving.process.wait)
            stack.callback(serving.process.kill)
            stack.callback(serving.client.close)
            return serving

        yield start


@pytest.fixture(scope="session")
def service(serve: Callable[..., Serving]) -> Serving:
    """One that most tests share."""
    return serve("--max-n", "20000", "--max-seconds", "20", "--max-body", "1")


@pytest.fixture(scope="session")
def faulty(serve: Callable[..., Serving]) -> Serving:
    """One whose devices fail when a picture tells them to, and which has little patience."""
    return serve("--max-n", "20000", program=FAULTY)


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """An answer that has to be an RFC 9457 problem of a kind."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["type"] == f"urn:fvit:{kind}"
    assert found["status"] == status
    assert found["detail"]
    assert "Traceback" not in response.text
    return found
