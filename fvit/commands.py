"""The commands, and what all of them share: bad input is one line and a non-zero exit status, an interruption
says so."""

from __future__ import annotations

import errno
import importlib
import io
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from importlib.metadata import version
from queue import SimpleQueue
from typing import Annotated, Any, NoReturn, cast

import typer

from fvit.errors import FvitError

# Click's UsageError: some versions of typer carry a click of their own, which has no public name.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fvit {version('fvit')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
]


BundleArgument = Annotated[
    str, typer.Argument(help="A bundle, made by fvit-export; demo is the embedded one, and ./demo a folder.")
]


def finite(value: float) -> float:
    """For an option: a number, which NaN and infinity are not, although no range leaves NaN out."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number")
    return value


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; typer would answer KeyboardInterrupt itself."""


def certify() -> NoReturn:
    """fvit-certify."""
    run("fvit.runtime.cli")


def verify() -> NoReturn:
    """fvit-verify."""
    run("fvit.runtime.verifying")


def evaluate() -> NoReturn:
    """fvit-evaluate."""
    run("fvit.evaluation.cli")


def report() -> NoReturn:
    """fvit-report."""
    run("fvit.report.cli")


def export() -> NoReturn:
    """fvit-export."""
    run("fvit.export.cli")


def serve() -> NoReturn:
    """fvit-serve."""
    run("fvit.service.cli")


def run(module: str) -> NoReturn:
    """Run the `app` of a module to its exit status: 1 for bad input, 2 for bad usage, 130 for Ctrl-C and 143
    for SIGTERM.

    The module is imported here, which may take a second that a person may interrupt.
    """
    global _interruption
    _interruption = _Interruption()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # ASCII has no σ
    status = 1
    try:
        ended = importlib.import_module(module).app(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        status = ended or 0
    except (FvitError, CancelledError, Interrupted) as error:
        if _interruption.number:
            status = 128 + _interruption.number
            print("interrupted", file=sys.stderr)
        else:
            complain(str(error))
    except UsageError as error:
        status = error.exit_code
        if sys.argv[1:]:
            complain(f"{error.format_message()}: see --help")
        elif help_text := error.format_message():
            print(help_text)
    except OSError as error:
        _give_up_stdout()
        if error.errno != errno.EPIPE:  # whom it was written to wants no more
            complain(f"cannot go on: {error.strerror or error}")
    _interruption.end()
    sys.exit(status)


def on_interruption(cancel: Callable[[], Any]) -> None:
    """From now on an interruption calls this, in a thread of its own, instead of being raised.

    Raised at any line of the main thread, it may leave locked what other threads wait for. What is cancelled
    has to end in a CancelledError or FvitError.
    """
    _interruption.cancels(cancel)


def interrupted() -> bool:
    """Whether an interruption has been heard: for work that `cancel` does not reach."""
    return _interruption.number != 0


class _Interruption:
    """The first Ctrl-C or SIGTERM; from then on another one ends the process at once."""

    number = 0

    def __init__(self) -> None:
        self._heard: SimpleQueue[bool] | None = None
        self._signals = [
            number
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN  # as nohup and a shell's background have it
        ]
        self._listen()
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._again

    def cancels(self, cancel: Callable[[], Any]) -> None:
        heard = self._heard = SimpleQueue()

        def wait() -> None:
            if heard.get():
                cancel()

        threading.Thread(target=wait, name="fvit-interruption", daemon=True).start()

    def end(self) -> None:
        self._default()
        sys.unraisablehook = self._hook
        if self._heard is not None:
            self._heard.put(False)

    def _hear(self, number: int, frame: object) -> None:
        self._default()
        self.number = number
        if self._heard is None:
            raise Interrupted
        self._heard.put(True)  # all that is safe here: whatever it stands in may hold a lock

    def _again(self, ignored: Any) -> None:
        """Of what was raised where Python ignores it, as in a destructor or in C that calls back: raise an
        interruption anew, a little later."""
        if not isinstance(ignored.exc_value, Interrupted):
            self._hook(ignored)
            return
        self._listen()
        later = threading.Timer(0.01, os.kill, (os.getpid(), self.number))
        later.daemon = True
        later.start()

    def _listen(self) -> None:
        for number in self._signals:
            signal.signal(number, self._hear)

    def _default(self) -> None:
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)


_interruption: _Interruption


def complain(text: str) -> None:
    """Say on one line what is wrong."""
    print(f"error: {one_line(text)}", file=sys.stderr)


def _give_up_stdout() -> None:
    """What is left in it cannot be written, and Python would say so when it ends."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(text: str) -> str:
    """Text that any terminal takes as one line: file names may hold newlines, control characters and bytes
    that are no UTF-8."""
    encodable = os.fsencode(text) if _is_from_file_name(text) else text.encode(errors="backslashreplace")
    shown = encodable.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown)


def _is_from_file_name(text: str) -> bool:
    """Whether all its half characters stand for bytes of a file name."""
    return all(not "\ud800" <= each <= "\udfff" or "\udc80" <= each <= "\udcff" for each in text)
