"""How accurate, how certain, how faithful is the embedded FViT?  With its denoiser and without.

    python -m benchmarks.certified_accuracy.py BUNDLE [--images 200] [--n 1000]

Certifies fresh held-out compositions at several σ and writes a table to benchmarks/results/; rows of
an earlier run on the same bundle are kept. Every certificate is kept in the work folder as it is
done, so a run that was stopped continues.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

from benchmarks.keeping import RESULTS, publish
from fvit.certificates.claims import top_tokens
from fvit.demo.data import Compositions, compositions, tokens_on_mask
from fvit.engines.onnxruntime import ROWS
from fvit.engines.opening import open_engine
from fvit.runtime.bundle import Bundle, open_bundle
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.host import DenoisedClassifier, Floats, HostCounter
from fvit.runtime.loading import ON_CORE
from fvit.runtime.noise import noisy_copies, philox_key

SEED = 77
RADII = (0.0, 0.25, 0.5, 0.75)
K = 10


class NoDenoiser(DenoisedClassifier):
    """The same classifier, shown the noisy copies as they are."""

    def denoise(self, noisy: Floats, *, sigma: Floats) -> Floats:
        return noisy


def main(
    bundle: Annotated[str, typer.Argument(help="The demo bundle.")],
    images: Annotated[int, typer.Option(help="Held-out compositions to certify.")] = 200,
    n: Annotated[int, typer.Option(help="Copies of each image.")] = 1000,
    sigma: Annotated[list[float] | None, typer.Option(help="Noise levels.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for finished certificates.")] = Path("build/accuracy"),
) -> None:
    opened = open_bundle(bundle)
    data = compositions(max(1000, images), seed=SEED, split="held-out")
    rows: list[dict[str, Any]] = []
    for name, kind in PIPELINES.items():
        with running(opened, kind) as vit:
            accuracy = clean_accuracy(vit, data)
            rows += [
                measure(vit, data, images=images, sigma=level, n=n, name=name, work=work)
                for level in sigma or [0.25, 0.5, 0.12]
            ]
    file = RESULTS / "certified_accuracy.json"
    earlier = json.loads(file.read_text()) if file.exists() else {}
    if (earlier.get("bundle"), earlier.get("n")) == (opened.digest, n):
        measured = {(row["denoiser"], row["sigma"]) for row in rows}
        rows += [row for row in earlier["rows"] if (row["denoiser"], row["sigma"]) not in measured]
    result = {
        "bundle": opened.digest,
        "n": n,
        "clean_accuracy": accuracy,
        "rows": sorted(rows, key=lambda row: (row["denoiser"] != "with", row["sigma"])),
    }
    publish("certified_accuracy", result, markdown(result))


PIPELINES: dict[str, type[DenoisedClassifier]] = {"with": DenoisedClassifier, "without": NoDenoiser}


def running(bundle: Bundle, kind: type[DenoisedClassifier]) -> FaithfulViT:
    """The bundle's FViT with its denoiser or without it, on every core."""
    denoiser, classifier = (
        open_engine(graph, device="cpu", threads=1) for graph in (bundle.denoiser, bundle.classifier)
    )
    manifest = bundle.manifest
    pipeline = kind(denoiser, classifier, schedule=manifest.schedule, image_size=manifest.image_size)
    counters = [HostCounter(pipeline, rows=ON_CORE, grain=ROWS) for _ in os.sched_getaffinity(0)]
    return FaithfulViT(bundle, pipeline, counters, device="cpu")


def clean_accuracy(vit: FaithfulViT, data: Compositions) -> float:
    """Accuracy of the plain classifier on the first 1,000 images."""
    right = 0
    for first in range(0, 1000, 100):
        pixels = data.images[first : first + 100].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        logits, _ = vit.pipeline.classify(pixels)
        right += int((logits.argmax(axis=1) == data.labels[first : first + 100]).sum())
    return right / 1000


def measure(
    vit: FaithfulViT, data: Compositions, *, images: int, sigma: float, n: int, name: str, work: Path
) -> dict[str, Any]:
    """One row of the table: certificates of the first images at one σ."""
    terms = vit.terms(sigma=sigma, n=n, k=K, seed=SEED)
    work.mkdir(parents=True, exist_ok=True)
    file = work / f"{vit.bundle.digest[:12]}-{name}-{sigma:g}-{n}.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    pictures = (vit.read(data.images[i]) for i in range(len(done), images))
    with file.open("a") as journal:
        certificates = vit.certify_many(pictures, terms)
        for certificate in track(certificates, f"σ = {sigma:g} {name}", total=images - len(done)):
            done.append(certificate.to_dict())
            journal.write(json.dumps(done[-1]) + "\n")
            journal.flush()
    done = done[:images]
    labels = data.labels[: len(done)]
    right = np.array([r["class"]["index"] for r in done]) == labels
    radius = np.array([r["class"]["radius_l2"] for r in done])
    attention = np.array([r["attention"]["radius_l2"] for r in done])
    on_mask = tokens_on_mask(data.masks, patch=8)
    return {
        "denoiser": name,
        "sigma": sigma,
        "images": len(done),
        "certified_correct": {str(r): float((right & (radius > 0) & (radius >= r)).mean()) for r in RADII},
        "attention_certified": float((attention > 0).mean()),
        "attention_radius_median": float(np.median(attention)),
        "published_radius_median": float(np.median([r["attention"]["published_renyi_radius"] for r in done])),
        "on_mask_smoothed": float(
            np.mean([on_mask[i, r["attention"]["tokens"]].mean() for i, r in enumerate(done)])
        ),
        "on_mask_plain_clean": plain_share(vit, data, on_mask, images=len(done), sigma=0.0),
        "on_mask_plain_noisy": plain_share(vit, data, on_mask, images=len(done), sigma=sigma),
        "seconds_per_certificate_median": float(np.median([r["seconds"] for r in done])),
    }


def plain_share(
    vit: FaithfulViT, data: Compositions, on_mask: np.ndarray[Any, Any], *, images: int, sigma: float
) -> float:
    """Mean share of the plain classifier's ten largest tokens that touch the digit, on the images
    as they are or with noise σ on them."""

    def shares() -> Iterator[float]:
        for i in range(images):
            picture = vit.read(data.images[i])
            shown = np.divide(picture.pixels[None], 255, dtype=np.float32)
            if sigma:
                key = philox_key(picture.pixels_sha256, size=vit.pipeline.image_size, seed=SEED)
                shown = noisy_copies(picture.pixels, range(1), sigma=sigma, key=key)
            _, attribution = vit.pipeline.classify(shown)
            yield float(on_mask[i, top_tokens(attribution[0], K)].mean())

    return float(np.mean(list(shares())))


def markdown(result: dict[str, Any]) -> str:
    head = (
        f"Clean accuracy on 1,000 held-out compositions: {100 * result['clean_accuracy']:.1f} %. "
        f"Certificates: n = {result['n']:,}, α = 0.001, k = 10, β = 0.8, vote aggregate, on held-out "
        "compositions.\n\n"
    )
    table = [
        "| denoiser | σ | images | certified correct at 0 | 0.25 | 0.5 | 0.75 | attention certified "
        "| median attention radius | on the digit: smoothed | plain, clean | plain, noisy |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [f"{100 * row['certified_correct'][str(r)]:.1f} %" for r in RADII]
        cells += [f"{100 * row['attention_certified']:.1f} %", f"{row['attention_radius_median']:.3f}"]
        cells += [
            f"{100 * row[f'on_mask_{kind}']:.0f} %" for kind in ("smoothed", "plain_clean", "plain_noisy")
        ]
        table.append(
            f"| {row['denoiser']} | {row['sigma']:g} | {row['images']} | " + " | ".join(cells) + " |"
        )
    return head + "\n".join(table) + "\n"


if __name__ == "__main__":
    typer.run(main)
