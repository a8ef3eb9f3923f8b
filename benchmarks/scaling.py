"""How do time and memory grow with copies, images, image size and batch size?

    python -m benchmarks.scaling BUNDLE

Each point is a process of its own, so that its peak memory is its own. Copies go from 100 to 100,000;
images and sizes are varied at 100 copies, batches, which are each core's, at 1,024. Another image size
exports the embedded denoiser at that size in front of the embedded classifier.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

import fvit
from benchmarks.keeping import RESULTS, publish
from benchmarks.machine import machine, peak_megabytes
from fvit.extras import require
from fvit.runtime.bundle import open_bundle
from fvit.runtime.loading import ON_CORE

POINTS: dict[str, tuple[int, ...]] = {
    "copies": (100, 1000, 10_000, 100_000),
    "images": (1, 4, 16, 64),
    "image size": (32, 64, 128, 256),
    "batch": (2, 4, 8, 16, 32, 64),
}
USUAL = {"copies": 100, "images": 1, "image size": 64, "batch": ON_CORE}
BATCHED = {"copies": 1024}  # several whole batches of the largest


def child(bundle: str, *, copies: int, images: int, batch: int) -> dict[str, float]:
    """Certify random images; seconds of the certification alone, peak memory of the process."""
    with fvit.load(bundle, batch=batch) as vit:
        rng = np.random.default_rng(0)
        rows, columns = vit.pipeline.image_size
        pictures = [vit.read(rng.random((3, rows, columns), np.float32)) for _ in range(images)]
        start = time.perf_counter()
        for _ in vit.certify_many(pictures, vit.terms(n=copies, seed=0)):
            pass
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak_megabytes()}


def at_size(side: int, folder: Path) -> Path:
    """The embedded model with its denoiser at another image size."""
    from fvit.demo import models
    from fvit.demo.data import LABELS
    from fvit.export.bundles import export_bundle

    target = folder / f"size-{side}"
    export_bundle(
        target, classifier=models.load_classifier(models.TUNED), classifier_name="tuned", labels=LABELS,
        denoiser=models.load_denoiser(models.DENOISERS["student"]), denoiser_name="student", image_size=side,
    )  # fmt: skip
    return target


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    figure = require("matplotlib.figure", extra="plots", purpose="the plot").Figure(
        figsize=(10, 4.5), dpi=150, layout="constrained"
    )
    grid = figure.subplots(2, len(POINTS))
    for column, axis in enumerate(POINTS):
        points = [row for row in rows if row["axis"] == axis]
        x = [row["value"] for row in points]
        for axes, key, words in zip(grid[:, column], ("seconds", "peak_mb"), ("seconds", "MB"), strict=True):
            axes.plot(x, [row[key] for row in points], marker="o")
            axes.set_xscale("log", base=10 if axis == "copies" else 2)
            axes.set_xticks(x, [f"{value:,}" for value in x], fontsize=7)
            axes.minorticks_off()
            axes.set_xlabel(axis)
            axes.set_ylabel(words)
        if axis in ("copies", "images"):
            grid[0, column].set_yscale("log")
        else:
            grid[0, column].set_ylim(bottom=0)
        grid[1, column].set_ylim(0, 1.1 * max(row["peak_mb"] for row in points))
    figure.savefig(file)


def markdown(result: dict[str, Any]) -> str:
    where = result["machine"]
    lines = [
        f"{where['cores']} cores of {where['cpu']}, {result['precision']}; what is not varied: "
        f"{USUAL['copies']} copies ({BATCHED['copies']:,} where the batch is), {USUAL['images']} image, "
        f"{USUAL['image size']} pixels, batch {USUAL['batch']}.",
        "",
        "| varied | value | seconds | copies/s | peak memory |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        rate = row["copies"] * row["images"] / row["seconds"]
        lines.append(
            f"| {row['axis']} | {row['value']:,} | {row['seconds']:.2f} | {rate:,.0f} "
            f"| {row['peak_mb']:,.0f} MB |"
        )
    return "\n".join(lines) + "\n"


def main(
    bundle: Annotated[str, typer.Argument(help="The demo bundle.")],
    point: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    if point is not None:
        copies, images, batch = map(int, point.split(","))
        print(json.dumps(child(bundle, copies=copies, images=images, batch=batch)))
        return
    rows: list[dict[str, Any]] = []
    todo = [(axis, value) for axis, values in POINTS.items() for value in values]
    with tempfile.TemporaryDirectory() as folder:
        for axis, value in track(todo, "measuring"):
            at = USUAL | (BATCHED if axis == "batch" else {}) | {axis: value}
            used = bundle if at["image size"] == 64 else at_size(at["image size"], Path(folder))
            words = f"{at['copies']},{at['images']},{at['batch']}"
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.scaling", str(used), "--point", words],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            rows.append({"axis": axis, "value": value, **at, **json.loads(done.stdout.splitlines()[-1])})
    result = {"machine": machine(), "precision": open_bundle(bundle).manifest.precision, "rows": rows}
    publish("scaling", result, markdown(result))
    plot(rows, RESULTS / "scaling.png")


if __name__ == "__main__":
    typer.run(main)
