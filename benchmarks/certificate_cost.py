"""How long until a user knows whether an image is robust at radius r?

    python -m benchmarks.certificate_cost BUNDLE [--images 60] [--radius 0.2] [--device auto]

Our sequential decision on our engine, to its answer or to n = 10,000, against the research loop in torch
eager, on the embedded teacher and original classifier, with n = 10,000. The loop's time does not depend on
what it sees, so it is run on 192 copies of each image, in turn with our decision, and scaled to 10,000. Every
image is kept in the work folder as it is done, so a run that was stopped continues.
"""

from __future__ import annotations

import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import fvit
from benchmarks.keeping import publish, resumed
from benchmarks.machine import machine
from benchmarks.research_loop import ResearchLoop
from fvit.demo import models
from fvit.demo.data import compositions
from fvit.export.denoisers import load_diffusers
from fvit.runtime.images import Picture

SIGMA, K, N, SAMPLED = 0.25, 10, 10_000, 192
SEED = 0

BATCH = 32
"""Copies that the loop takes at once."""


def measure(vit: fvit.FaithfulViT, loop: ResearchLoop, picture: Picture, *, radius: float) -> dict[str, Any]:
    """Seconds of both ways on one image, and what ours answered."""
    start = time.perf_counter()
    pixels = torch.from_numpy(picture.pixels).float() / 255
    loop.run(pixels, copies=SAMPLED, sigma=SIGMA, k=K, batch=BATCH)
    research = (time.perf_counter() - start) * N / SAMPLED
    start = time.perf_counter()
    (certificate,) = vit.certify_many([picture], vit.terms(sigma=SIGMA, n=N, k=K, radius=radius, seed=SEED))
    ours = time.perf_counter() - start
    assert certificate.decision is not None
    return {
        "answer": certificate.decision.answer, "copies": certificate.copies, "seconds": ours,
        "research_seconds": research, "ratio": research / ours,
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    where = result["machine"]
    answers = ", ".join(f"{count} {answer}" for answer, count in result["answers"].items())
    return (
        f"{result['images']} held-out images, radius {result['radius']:g}, σ = {SIGMA}, k = {K}, β = 0.8, "
        f"α = 0.001; {where['cores']} cores of {where['cpu']} ({where['instructions']}). Ours: "
        f"{result['denoiser']}, {result['classifier']}, {result['engine']['precision']} on "
        f"{result['engine']['name']}. "
        f"Theirs: torch eager, teacher and original classifier, n = 10,000 in batches of {BATCH}, reckoned "
        f"from {SAMPLED} copies of each image. Answers: {answers}.\n\n"
        "| | median | 90th percentile |\n|---|---|---|\n"
        f"| research loop, seconds | {result['research'][0]:.1f} | {result['research'][1]:.1f} |\n"
        f"| sequential decision, seconds | {result['ours'][0]:.2f} | {result['ours'][1]:.2f} |\n"
        f"| copies drawn | {result['copies'][0]:,.0f} | {result['copies'][1]:,.0f} |\n"
        f"| times faster (smallest tenth in the second column) | {result['ratio'][0]:.0f} "
        f"| {result['ratio'][1]:.1f} |\n"
    )


def main(
    bundle: Annotated[str, typer.Argument(help="A bundle of the demo, such as demo.")],
    images: Annotated[int, typer.Option(help="Held-out compositions.")] = 60,
    radius: Annotated[float, typer.Option(help="The radius that is asked about.")] = 0.2,
    device: Annotated[str, typer.Option(help="Of ours, as fvit.load takes it.")] = "auto",
    work: Annotated[Path, typer.Option(help="Folder for finished images.")] = Path("build/cost"),
) -> None:
    loop = ResearchLoop(models.load_classifier(), load_diffusers(models.DENOISER))
    data = compositions(images, seed=84, split="held-out")
    with fvit.load(bundle, device=device) as vit:
        asked = {"bundle": vit.bundle.digest, "engine": vit.engine, "machine": machine(), "radius": radius}
        done = resumed(
            work / f"{sha256(json.dumps(asked).encode()).hexdigest()[:16]}.jsonl",
            images,
            lambda i: measure(vit, loop, vit.read(data.images[i]), radius=radius),
            words="deciding",
        )

    def spread(key: str, tail: float = 0.9) -> list[float]:
        return [float(value) for value in np.quantile([each[key] for each in done], [0.5, tail])]

    given = [each["answer"] for each in done]
    manifest = vit.bundle.manifest
    result = asked | {
        "denoiser": manifest.denoiser,
        "classifier": manifest.classifier,
        "images": len(done),
        "answers": {answer: given.count(answer) for answer in sorted(set(given))},
        "research": spread("research_seconds"),
        "ours": spread("seconds"),
        "copies": spread("copies"),
        "ratio": spread("ratio", 0.1),
    }
    publish(f"certificate_cost-{manifest.precision}", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
