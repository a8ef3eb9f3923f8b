"""One of the bundles that speed is measured on.

python -m benchmarks.gpu.bundles MODEL PRECISION FOLDER [--json FILE]
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.keeping import tell
from benchmarks.latency import made_bundles


def main(
    model: Annotated[str, typer.Argument(help="demo, vit-b or vit-b-adm.")],
    precision: Annotated[str, typer.Argument(help="fp32, fp16 or int8.")],
    folder: Annotated[Path, typer.Argument(help="Where the model's bundles lie; one that is there stays.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="What it took.")] = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    bundle = made_bundles(model, [precision], folder)[precision]
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    tell({"seconds": time.perf_counter() - start, "megabytes": size / 1e6}, file=json_file)


if __name__ == "__main__":
    typer.run(main)
