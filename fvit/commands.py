"""What both commands share: an error is one line and a non-zero exit code, never a traceback."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from fvit.errors import FvitError


def run(app: typer.Typer) -> None:
    """Run a command line to its exit code: 1 for bad input, 2 for bad usage, 130 for Ctrl-C."""
    try:
        app()
    except FvitError as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {_plain(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted", highlight=False)
        sys.exit(130)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
