"""Does a process that loads, uses and closes bundles again and again keep anything of them?

    python -m benchmarks.lifetime BUNDLE [--cycles 200]

A cycle makes a small certificate and leaves a refinement after its first one. Counted after each: threads,
open files and resident memory, which goes up and down with the allocator, so that its trend is told.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import fvit
from benchmarks.keeping import publish
from benchmarks.machine import machine, resident_megabytes

SETTLED = 20
"""Cycles before anything is compared: libraries load and fill what they keep for good."""


def lives(bundle: Path, *, cycles: int) -> Iterator[dict[str, float]]:
    """What there is after each cycle."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for _ in range(cycles):
        with fvit.load(bundle) as vit:
            vit.certify(image, n=30, alpha=0.1)
            next(iter(vit.refine(image, alpha=0.1)))
        yield {
            "threads": threading.active_count(),
            "files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
            "megabytes": resident_megabytes(),
        }


def markdown(result: dict[str, Any]) -> str:
    def span(name: str) -> str:
        return f"{result[name][0]:.0f} to {result[name][1]:.0f}"

    return (
        f"{result['cycles']} cycles of load, use and close, {result['precision']}; after the first {SETTLED}:"
        "\n\n"
        "| threads | open files | resident memory, MB | trend, MB in 100 cycles |\n|---|---|---|---|\n"
        f"| {span('threads')} | {span('files')} | {span('megabytes')} | {result['trend']:+.1f} ± "
        f"{result['error']:.1f} |\n"
    )


def main(
    bundle: Annotated[Path, typer.Argument(help="The demo bundle.")],
    cycles: Annotated[int, typer.Option(help="Of load, use and close.")] = 200,
) -> None:
    with fvit.load(bundle) as vit:
        precision = vit.bundle.manifest.precision
    found = list(lives(bundle, cycles=cycles))[SETTLED:]
    (slope, _), covariance = np.polyfit(
        np.arange(len(found)), [each["megabytes"] for each in found], 1, cov=True
    )
    result: dict[str, Any] = {
        "machine": machine(), "precision": precision, "cycles": cycles,
        "trend": 100 * float(slope), "error": 200 * float(covariance[0, 0]) ** 0.5,
    }  # fmt: skip
    for name in ("threads", "files", "megabytes"):
        result[name] = [min(each[name] for each in found), max(each[name] for each in found)]
    publish("lifetime", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
