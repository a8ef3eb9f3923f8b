"""Does deciding keep the device as busy as estimating?

    python -m benchmarks.deciding BUNDLE [--images 100]

certify_many, as fvit-certify calls it, over held-out images: at a fixed n, deciding at r = 0.2, and at the
fixed n again, in one run. Only copies that a record rests on are counted.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
import typer

import fvit
from benchmarks.keeping import publish
from benchmarks.machine import machine
from fvit.certificates.terms import Terms
from fvit.demo.data import compositions
from fvit.runtime.images import Picture

FIXED, MOST, RADIUS, SEED = 250, 1000, 0.2, 20250102


def measured(vit: fvit.FaithfulViT, pictures: list[Picture], terms: Terms) -> dict[str, Any]:
    start = time.perf_counter()
    copies = [certificate.copies for certificate in vit.certify_many(pictures, terms)]
    seconds = time.perf_counter() - start
    return {
        "copies": sum(copies),
        "median": float(np.median(copies)),
        "seconds": seconds,
        "copies_per_second": sum(copies) / seconds,
    }


def measure(vit: fvit.FaithfulViT, *, images: int) -> dict[str, Any]:
    pictures = [vit.read(image) for image in compositions(images, seed=81, split="held-out").images]
    fixed = vit.terms(n=FIXED, seed=SEED)
    deciding = vit.terms(n=MOST, radius=RADIUS, seed=SEED)
    vit.certify(pictures[0], n=FIXED)  # warm
    return {
        "fixed": measured(vit, pictures, fixed),
        "deciding": measured(vit, pictures, deciding),
        "again": measured(vit, pictures, fixed),
    }


def markdown(result: dict[str, Any]) -> str:
    fixed = np.mean([result[run]["copies_per_second"] for run in ("fixed", "again")])

    def row(name: str, run: dict[str, Any]) -> str:
        return (
            f"| {name} | {run['copies']} | {run['median']:.0f} | {run['seconds']:.0f} "
            f"| {run['copies_per_second']:.0f} | {run['copies_per_second'] / fixed:.1%} |"
        )

    lines = [
        f"{result['machine']['cpu']}, {result['precision']} bundle, {result['images']} images.",
        "",
        "| certify_many | copies of all images | median | seconds | copies/s | of fixed n's |",
        "|---|---|---|---|---|---|",
        row(f"n = {FIXED}", result["fixed"]),
        row(f"radius {RADIUS}, n ≤ {MOST}", result["deciding"]),
        row(f"n = {FIXED} again", result["again"]),
    ]
    return "\n".join(lines) + "\n"


def main(
    bundle: Annotated[str, typer.Argument(help="The demo bundle.")],
    images: Annotated[int, typer.Option(help="Held-out compositions.")] = 100,
    device: Annotated[str, typer.Option(help="As fvit.load takes it.")] = "cpu",
) -> None:
    with fvit.load(bundle, device=device) as vit:
        result = {"machine": machine(), "precision": vit.bundle.manifest.precision, "images": images}
        result |= measure(vit, images=images)
    publish("deciding", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
