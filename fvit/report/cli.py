"""fvit-report: one page of what fvit-certify or fvit-evaluate left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from fvit import commands
from fvit.report.build import write_report

app = typer.Typer(add_completion=False)
console = Console()


@app.command(no_args_is_help=True)
def fvit_report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that fvit-certify --out or fvit-evaluate made.")
    ],
    _version: commands.VersionOption = False,
) -> None:
    """Write DIR/report.html: figures, curves and every image with its certificate, in one file that needs
    nothing else."""
    file = commands.one_line(str(write_report(folder)))
    console.print(Text(f"the report is {file}"), soft_wrap=True)
