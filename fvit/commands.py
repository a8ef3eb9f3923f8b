"""The commands, and what all of them share: bad input is one line and a non-zero exit status, an interruption
says so."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn, cast

import typer

from fvit.errors import FvitError

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)

# Click's UsageError: some versions of typer carry a click of their own, which has no public name.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fvit {version('fvit')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
]


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; typer would answer KeyboardInterrupt itself."""


def certify() -> NoReturn:
    """fvit-certify."""
    run("fvit.runtime.cli")


def verify() -> NoReturn:
    """fvit-verify."""
    run("fvit.runtime.verifying")


def export() -> NoReturn:
    """fvit-export."""
    run("fvit.export.cli")


def run(module: str) -> NoReturn:
    """Run the `app` of a module to its exit status: 1 for bad input, 2 for bad usage, 130 for Ctrl-C and 143
    for SIGTERM.

    The module is imported here, which may take a second that a person may interrupt.
    """
    for number in INTERRUPTIONS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's background have it
            signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # ASCII has no σ
    status = 1
    try:
        ended = importlib.import_module(module).app(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        status = ended or 0
    except FvitError as error:
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
    except Interrupted as interrupted:
        status = 128 + interrupted.args[0]
        print("interrupted", file=sys.stderr)
    _end_at_the_next()
    sys.exit(status)


def _interrupt(number: int, frame: object) -> NoReturn:
    _end_at_the_next()
    raise Interrupted(number)


def _end_at_the_next() -> None:
    """From here on an interruption ends the process at once."""
    for number in INTERRUPTIONS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


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
