"""What do fp16 and int8 change, copy by copy and certificate by certificate?

    python -m benchmarks.precision FP32_BUNDLE OTHER_BUNDLE...  [--copies 1000] [--images 200]

All bundles see the same noisy copies: one copy each of held-out compositions for classes and tokens,
n = 200 copies an image for certificates.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

import fvit
from benchmarks.keeping import publish
from fvit.certificates.claims import top_tokens
from fvit.demo.data import Compositions, compositions
from fvit.runtime.noise import noisy_copies, philox_key

SIGMA, RADIUS, K, SEED = 0.25, 0.25, 10, 0


def single_copies(
    vit: fvit.FaithfulViT, data: Compositions, *, copies: int
) -> tuple[np.ndarray[Any, Any], ...]:
    """Class and top tokens of one noisy copy of each image."""
    classes, tokens = [], []
    for image in track(data.images[:copies], f"{vit.bundle.manifest.precision}: copies"):
        picture = vit.read(image)
        key = philox_key(picture.pixels_sha256, size=vit.pipeline.image_size, seed=SEED)
        noisy = noisy_copies(picture.pixels, range(1), sigma=SIGMA, key=key)
        logits, attribution = vit.pipeline(noisy, sigma=np.full(1, SIGMA, np.float32))
        classes.append(logits[0].argmax())
        tokens.append(top_tokens(attribution[0], K))
    return np.array(classes), np.array(tokens)


def certified(vit: fvit.FaithfulViT, data: Compositions, *, images: int) -> dict[str, float]:
    """Shares of images certified correct, and with a certified explanation, at RADIUS and at n = 200."""
    right, radii = 0, []
    pictures = (vit.read(image) for image in data.images[:images])
    certificates = vit.certify_many(pictures, vit.terms(sigma=SIGMA, n=200, k=K, seed=SEED))
    for label, certificate in zip(
        data.labels,
        track(certificates, f"{vit.bundle.manifest.precision}: certificates", images),
        strict=False,
    ):
        right += certificate.class_.index == label and certificate.class_.radius_l2 >= RADIUS
        radii.append(certificate.attention.radius_l2)
    return {"certified_correct": right / images, "attention_radius_median": float(np.median(radii))}


def main(
    bundles: Annotated[list[str], typer.Argument(help="The fp32 demo bundle, then others of the demo.")],
    copies: Annotated[int, typer.Option(help="Images of which one copy is compared.")] = 1000,
    images: Annotated[int, typer.Option(help="Images that are certified.")] = 200,
) -> None:
    data = compositions(max(copies, images), seed=82, split="held-out")
    rows: list[dict[str, Any]] = []
    reference: tuple[np.ndarray[Any, Any], ...] = ()
    for bundle in bundles:
        with fvit.load(bundle) as vit:
            classes, tokens = single_copies(vit, data, copies=copies)
            reference = reference or (classes, tokens)
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
