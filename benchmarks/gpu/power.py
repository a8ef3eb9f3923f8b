"""What power does a GPU take, and how many joules does a certificate cost?

    python -m benchmarks.gpu.power BUNDLE [--device tensorrt:0] [--batch 256] [--n 1000] [--json FILE]

By NVML's counter of energy, which speaks of the whole board: first of nobody's work, then of certificates one
after another.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import fvit
from benchmarks.gpu.environment import management
from benchmarks.keeping import tell

IDLE = 5.0
"""Seconds that the GPU is watched without work, its context open."""


def power(
    bundle: str, *, device: str, batch: int | None, n: int, sigma: float, seconds: float
) -> dict[str, Any]:
    """Watts without and with work, joules and seconds of a certificate."""
    nvml, handle = management(int(device.partition(":")[2]))

    def joules() -> float:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3

    with fvit.load(bundle, device=device, batch=batch) as vit:
        image = np.full((*vit.pipeline.image_size, 3), 128, np.uint8)
        vit.certify(image, sigma=sigma, n=n)
        before = joules()
        time.sleep(IDLE)
        idle = (joules() - before) / IDLE
        certificates, before, start = 0, joules(), time.perf_counter()
        while (taken := time.perf_counter() - start) < seconds or not certificates:
            vit.certify(image, sigma=sigma, n=n)
            certificates += 1
        used = joules() - before
        rows, precision = vit.rows, vit.bundle.manifest.precision
    return {
        "device": device, "precision": precision, "batch": rows, "n": n, "certificates": certificates,
        "seconds": taken / certificates, "joules": used / certificates,
        "watts": used / taken, "idle_watts": idle,
    }  # fmt: skip


def main(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    device: Annotated[str, typer.Option(help="cuda:0 or tensorrt:0.")] = "tensorrt:0",
    batch: Annotated[int | None, typer.Option(help="Copies at once.")] = None,
    n: Annotated[int, typer.Option(help="Copies of a certificate.")] = 1000,
    sigma: Annotated[float, typer.Option(help="Of the noise.")] = 0.25,
    seconds: Annotated[float, typer.Option(help="Of certificates one after another, at least.")] = 15.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write it here.")] = None,
) -> None:
    found = power(bundle, device=device, batch=batch, n=n, sigma=sigma, seconds=seconds)
    tell(found, file=json_file)


if __name__ == "__main__":
    typer.run(main)
