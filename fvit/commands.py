"""What all commands share: bad input is one line and a non-zero exit status, an interruption says so."""

from __future__ import annotations

import os
import signal
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from fvit.errors import FvitError


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fvit {version('fvit')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
]


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; typer would answer KeyboardInterrupt itself."""


def run(app: typer.Typer) -> NoReturn:
    """Run a command line to its exit status: 1 for bad input, 2 for bad usage, 130 for Ctrl-C and 143 for
    SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's background have it
            signal.signal(number, _interrupt)
    try:
        app()
    except FvitError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
    except Interrupted as interrupted:
        print("interrupted: what was done is kept", file=sys.stderr)
        sys.exit(128 + interrupted.args[0])
    sys.exit(1)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise Interrupted(number)


def one_line(text: str) -> str:
    """Text that any terminal takes as one line: file names may hold newlines, control characters and bytes
    that are no UTF-8."""
    encodable = os.fsencode(text) if _is_from_file_name(text) else text.encode(errors="backslashreplace")
    shown = encodable.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown)


def _is_from_file_name(text: str) -> bool:
    """Whether all its half characters stand for bytes of a file name."""
    return all(not "\ud800" <= each <= "\udfff" or "\udc80" <= each <= "\udcff" for each in text)
