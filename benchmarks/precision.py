"""What do fp16 and int8 change, copy by copy and certificate by certificate?

    python benchmarks/precision.py FP32_BUNDLE OTHER_BUNDLE...  [--copies 1000] [--images 200]

All bundles see the same noisy copies: one copy each of held-out compositions for classes and tokens,
n = 200 copies an image for certificates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

from benchmarks.keeping import publish
from fvit.certificates.record import top_tokens
from fvit.demo.data import Compositions, compositions
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.host import noisy_copies
from fvit.runtime.loading import load

SIGMA, RADIUS, K = 0.25, 0.25, 10


def single_copies(vit: FaithfulViT, data: Compositions, *, copies: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Class and top tokens of one noisy copy of each image."""
    classes, tokens = [], []
    for first in track(range(0, copies, 40), f"{vit.bundle.manifest.precision}: copies"):
        pixels = [vit.read(image).pixels for image in data.images[first : min(first + 40, copies)]]
        noisy = [
            noisy_copies(each, range(first + i, first + i + 1), sigma=SIGMA, seed=0)
            for i, each in enumerate(pixels)
        ]
        logits, attribution = vit.pipeline(np.concatenate(noisy), sigma=SIGMA)
        classes.append(logits.argmax(axis=1))
        tokens += [top_tokens(each, K) for each in attribution]
    return np.concatenate(classes), np.array(tokens)


def certified(vit: FaithfulViT, data: Compositions, *, images: int) -> dict[str, float]:
    """Shares of images certified correct, and with a certified explanation, at RADIUS and at n = 200."""
    right, radii = 0, []
    pictures = (vit.read(image) for image in data.images[:images])
    for i, picture in enumerate(track(pictures, f"{vit.bundle.manifest.precision}: certificates", images)):
        certificate = vit.certify(picture.pixels, sigma=SIGMA, n0=50, n=200, k=K)
        right += certificate.class_.index == data.labels[i] and certificate.class_.radius_l2 >= RADIUS
        radii.append(certificate.attention.radius_l2)
    return {"certified_correct": right / images, "attention_radius_median": float(np.median(radii))}


def main(
    bundles: Annotated[list[Path], typer.Argument(help="The fp32 demo bundle, then others of the demo.")],
    copies: Annotated[int, typer.Option(help="Images of which one copy is compared.")] = 1000,
    images: Annotated[int, typer.Option(help="Images that are certified.")] = 200,
) -> None:
    data = compositions(max(copies, images), seed=82, split="held-out")
    rows: list[dict[str, Any]] = []
    for bundle in bundles:
        vit = load(bundle)
        classes, tokens = single_copies(vit, data, copies=copies)
        if not rows:
            reference = classes, tokens
        kept = [len(set(a) & set(b)) / K for a, b in zip(tokens, reference[1], strict=True)]
        rows.append(
            {
                "precision": vit.bundle.manifest.precision,
                "bundle": vit.bundle.digest,
                "same_class": float((classes == reference[0]).mean()),
                "same_tokens": float(np.mean(kept)),
                **certified(vit, data, images=images),
            }
        )
    result = {"copies": copies, "images": images, "rows": rows}
    publish("precision", result, markdown(result))


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"σ = {SIGMA}, k = {K}. Class and top-{K} tokens of one noisy copy of {result['copies']:,} held-out "
        f"images against fp32; certificates of {result['images']} images at n = 200, α = 0.001.",
        "",
        f"| precision | same class | same top-{K} tokens | certified correct at {RADIUS} "
        "| median attention radius |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['precision']} | {row['same_class']:.1%} | {row['same_tokens']:.1%} "
        f"| {row['certified_correct']:.1%} | {row['attention_radius_median']:.3f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
