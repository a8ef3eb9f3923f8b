"""A real tritonserver, started by the commands of docs/triton.md."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from fvit.errors import FvitError

HANDBOOK = Path(__file__).parents[2] / "docs" / "triton.md"
ENVIRONMENT = Path(sys.prefix) / "triton"
"""Where make test installs nvidia-pytriton, which carries the server."""

SETTLED = 20
"""Looks at the figures, a twentieth of a second apart, at which they have to be the same: they are told four
times a second."""

LIMIT = 60.0
"""Seconds after which something hangs."""


def block(heading: str, *, language: str) -> str:
    """The first block of code in a language below a heading of the handbook."""
    found = re.search(
        rf"^#+ {re.escape(heading)}\n.*?^```{language}\n(.*?)^```", HANDBOOK.read_text(), re.M | re.S
    )
    assert found is not None, f"docs/triton.md has no {language} below '{heading}'"
    return found[1]


def missing() -> str | None:
    """What is to be done where there is no server."""
    if list(ENVIRONMENT.glob("lib/python*/site-packages/pytriton/tritonserver/bin/tritonserver")):
        return None
    return f"there is no tritonserver: run  make triton,  which installs it in {ENVIRONMENT}"


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


class Triton:
    """The server in a process of its own, ready. http, grpc, metrics: its ports."""

    def __init__(self, repository: Path, *options: str) -> None:
        if reason := missing():
            raise FvitError(reason)
        while not self._starts(repository, options):
            pass  # somebody took a port that was free

    def _starts(self, repository: Path, options: Sequence[str]) -> bool:
        self.http, self.grpc, self.metrics = free_ports(3)
        self._regions = f"fvit-{self.http}-"
        self.log = repository.with_name(f"{repository.name}-{self.http}.log")
        options = (
            *(f"--{kind}-port={getattr(self, kind)}" for kind in ("http", "grpc", "metrics")),
            *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
            f"--backend-config=python,shm-region-prefix-name={self._regions}",
            *options,
        )
        script = block("Start it", language="sh").replace("$PWD/server", str(ENVIRONMENT))
        *before, start = script.replace("\\\n", "").strip().splitlines()
        start = start.replace("--model-repository=models", f"--model-repository={repository}")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["bash", "-euc", "\n".join([*before, f"exec {start} {' '.join(options)}"])],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            self._until(self._is_ready, "the server is not ready")
        except BaseException:
            self.process.kill()
            if "already in use" in self.log.read_text():
                return False
            raise
        return True

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def metric(self, name: str, *, model: str = "fvit") -> float:
        """A figure of a model's queue; 0 where there is none."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=LIMIT) as page:
            found = re.search(rf'^{name}\{{[^}}]*model="{model}".*\}} (\S+)$', page.read().decode(), re.M)
        return float(found[1]) if found else 0.0

    def until(self, name: str, good: Callable[[float], bool], *, model: str = "fvit") -> None:
        """Ask for a figure until it is good."""
        self._until(lambda: good(self.metric(name, model=model)), f"{name} stays what it is")

    def until_idle(self, *, model: str = "fvit") -> None:
        """Wait until a model computes nothing: its figures stay."""
        seen = [0.0]

        def stays() -> bool:
            seen.append(self.metric("fvit_copies_total", model=model))
            return len(seen) > SETTLED and len(set(seen[-SETTLED:])) == 1

        self.until("fvit_rows_waiting", lambda waiting: waiting == 0, model=model)
        self._until(stays, "copies are computed that nobody waits for")

    @property
    def models(self) -> list[int]:
        """The processes of its models."""
        found = []
        for file in Path(f"/proc/{self.process.pid}").glob("task/*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
                found += [int(child) for child in file.read_text().split()]
        return found

    @property
    def regions(self) -> list[Path]:
        """The shared memory of its models."""
        return list(Path("/dev/shm").glob(f"{self._regions}*"))

    def until_no_model(self) -> None:
        """Wait until every model's process has ended."""
        self._until(lambda: not self.models, "a model stays")

    def left(self) -> dict[str, int]:
        """What it holds."""
        own = Path(f"/proc/{self.process.pid}")
        return {
            "threads": len(list(own.glob("task/*"))),
            "files": len(list(own.glob("fd/*"))),
            "models": len(self.models),
            "regions": len(self.regions),
        }

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        pages = (f"{self.http}/v2/health/ready", f"{self.metrics}/metrics")  # the last port that it opens
        try:
            for page in pages:
                urllib.request.urlopen(f"http://127.0.0.1:{page}", timeout=LIMIT).close()
        except OSError:
            return False
        return True

    def _until(self, good: Callable[[], bool], words: str) -> None:
        end = time.monotonic() + LIMIT
        while not good():
            assert time.monotonic() < end, f"{words}: {self.log.read_text()[-3000:]}"
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
