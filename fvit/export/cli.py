"""fvit-export: make a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fvit import commands
from fvit.extras import require

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Turn a ViT and a denoiser into a bundle.")
console = Console()

BundleArgument = Annotated[Path, typer.Argument(help="Folder to write the bundle to.")]


@app.callback()
def _commands() -> None:
    """Keeps the subcommands' names even while there is only one."""


@app.command()
def demo(bundle: BundleArgument) -> None:
    """Export the embedded FViT: cluttered digits, 64x64, ten classes."""
    for module in ("torch", "timm", "diffusers", "onnx", "onnxscript"):
        require(module, extra="export", purpose="fvit-export")
    from fvit.export.bundles import export_demo

    with console.status("exporting the embedded model"):
        errors = export_demo(bundle)
    for graph, error in errors.items():
        console.print(f"{graph:<16} max relative error against torch {error:.1e}")
    console.print(f"bundle written to {bundle}")


def main() -> None:
    commands.run(app)
