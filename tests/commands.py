"""Commands, run in this process or in one of their own."""

import contextlib
import ctypes
import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

from fvit import commands

WAITS = 120
"""Seconds on the wall after which what is waited for never comes: many, because machines are shared."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def refusal(self) -> str:
        """The one line with which a command refused what it was given, having done nothing."""
        assert (self.status, self.stdout) in ((1, ""), (2, "")), (self.status, self.stdout)
        assert self.stderr.startswith("error: ") and self.stderr.endswith("\n"), self.stderr
        assert self.stderr[:-1].isprintable(), self.stderr
        return self.stderr[:-1]


def last_line(ended: Ended) -> str:
    """What a command said last that failed after some work."""
    assert ended.status == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr.strip().splitlines()[-1]


def here(command: str, *arguments: object, stdout: TextIO | None = None, encoding: str = "utf-8") -> Ended:
    """Run fvit-`command` in this process, to its exit status. stdout: what takes its output, instead of a
    file of this encoding."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv = [f"fvit-{command}", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(stdout or out),
        contextlib.redirect_stderr(err),
    ):
        try:
            getattr(commands, command)()
        except SystemExit as end:
            status = end.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert isinstance(status, int)
    return Ended(status, *map(_written, (out, err)))


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(stream.encoding)


def started(
    command: str, *arguments: object, prepare: Callable[[], Any] = lambda: None
) -> "subprocess.Popen[str]":
    """fvit-`command` in a process of its own; prepare is called in it first."""

    def begin() -> None:
        # A suite that a shell runs in the background inherits that Ctrl-C is ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        prepare()

    code = f"from fvit.commands import {command}; {command}()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=begin,
        env=os.environ | {"COLUMNS": "200"}, cwd=Path(__file__).parents[1],
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]") -> Ended:
    stdout, stderr = process.communicate()
    assert "Traceback" not in stderr, stderr
    return Ended(process.returncode, stdout, stderr)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file that this process writes may grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def obey_modes() -> None:
    """Take CAP_DAC_OVERRIDE from root, which writes where modes forbid it, for what is executed next."""
    if os.geteuid() == 0:
        drop_from_bounding_set, dac_override = 24, 1
        ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)
