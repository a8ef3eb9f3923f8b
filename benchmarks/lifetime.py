"""Does a process that loads, uses and closes bundles again and again keep anything of them?

    python -m benchmarks.lifetime BUNDLE [--cycles 200]

A cycle makes a small certificate and leaves a refinement after its first one. Counted after each: threads,
open files, what is allocated and not freed, and resident memory, which goes up and down with what the
allocator keeps for later. Of both the trend is told.
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
from benchmarks.machine import allocated_megabytes, machine, resident_megabytes

SETTLED = 20
"""Cycles before anything is compared: libraries load and fill what they keep for good."""


def lives(bundle: str | Path, *, cycles: int) -> Iterator[dict[str, float]]:
    """What there is after each cycle."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for _ in range(cycles):
        with fvit.load(bundle) as vit:
            vit.certify(image, n=30, alpha=0.1)
            next(iter(vit.refine(image, alpha=0.1)))
        yield {
            "threads": threading.active_count(),
            "files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
            "allocated": allocated_megabytes(),
            "resident": resident_megabytes(),
        }


def markdown(result: dict[str, Any]) -> str:
    def span(name: str) -> str:
        return f"{result[name][0]:.0f} to {result[name][1]:.0f}"

    return (
        f"{result['cycles']} cycles of load, use and close, {result['precision']}; after the first {SETTLED}:"
        "\n\n"
        "| threads | open files | allocated, MB | in 100 cycles | resident, MB | in 100 cycles |\n"
        "|---|---|---|---|---|---|\n"
        f"| {span('threads')} | {span('files')} | {span('allocated')} | {result['allocated trend']:+.2f} | "
        f"{span('resident')} | {result['resident trend']:+.1f} |\n"
    )


def main(
    bundle: Annotated[str, typer.Argument(help="The demo bundle.")],
    cycles: Annotated[int, typer.Option(help="Of load, use and close.")] = 200,
) -> None:
    with fvit.load(bundle) as vit:
        precision = vit.bundle.manifest.precision
    found = list(lives(bundle, cycles=cycles))[SETTLED:]
    result: dict[str, Any] = {"machine": machine(), "precision": precision, "cycles": cycles}
    for name in ("threads", "files", "allocated", "resident"):
        values = [each[name] for each in found]
        result[name] = [min(values), max(values)]
        result[f"{name} trend"] = 100 * float(np.polyfit(np.arange(len(values)), values, 1)[0])
    publish("lifetime", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
