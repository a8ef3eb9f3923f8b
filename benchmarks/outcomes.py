"""What the pipeline says of every copy of held-out images, kept: certificates.py computes from it.

    python -m benchmarks.outcomes BUNDLE [--images 100] [--copies 10000]

A file in the work folder holds 1,000 copies of an image, so a run that was stopped goes on. First come some
copies of every image, then those whose decisions are still open, then the rest. The engine is the fastest
that is installed. The seed of the noise was announced here before any of it was drawn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

import fvit
from benchmarks.keeping import write_json
from fvit import FaithfulViT
from fvit.certificates.decisions import Decision, decide
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms
from fvit.demo.data import compositions
from fvit.errors import FvitError
from fvit.runtime.bundle import open_bundle
from fvit.runtime.images import Picture
from fvit.runtime.noise import noisy_copies, philox_key

IMAGES_SEED, NOISE_SEED = 79, 20250101
SIGMA, ALPHA, K, BETA = 0.25, 1e-3, 10, 0.8
MOST, BLOCK, AT_ONCE = 10_000, 1000, 8
RADII = (0.05, 0.2, 0.4)
CLASSES, SIDE, GRID = 10, 64, (8, 8)
WORK = Path("build/outcomes")
ENGINE = "engine.json"
"""Which engine ran, in the folder of its outcomes."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """classes: uint8 [copies]; attribution: float32 [copies, tokens]."""

    classes: NDArray[np.uint8]
    attribution: NDArray[np.float32]

    def tallies(self, looks: Sequence[int], *, betting: bool = False) -> Iterator[Tally]:
        """One tally that grows: as it is at each look that there are copies for."""
        tally = Tally(CLASSES, self.attribution.shape[1], (K,), betting)
        for look in looks:
            if look > len(self.classes):
                return
            rows = slice(tally.copies, look)
            tally.add(np.eye(CLASSES, dtype=np.float32)[self.classes[rows]], self.attribution[rows])
            yield tally

    def decided(self, terms: Terms) -> tuple[int, Decision] | None:
        """The copies and the decision at the look that ends it; None where there are not enough copies."""
        for tally in self.tallies(terms.looks):
            decision = decide(tally, terms)
            if decision.answer != "undecided" or tally.copies == terms.n:
                return tally.copies, decision
        return None


def asked(*, n: int = MOST, radius: float | None = None, alpha: float = ALPHA, mean: bool = False) -> Terms:
    return Terms(
        sigma=SIGMA, n=n, alpha=alpha, k=(K,), beta=BETA, aggregate="mean" if mean else "vote",
        seed=NOISE_SEED, size=(SIDE, SIDE), radius=radius,
    )  # fmt: skip


def kept(folder: Path, image: int) -> Outcomes | None:
    """What the folder holds of an image, from copy 0 on; None where it holds nothing."""
    blocks = []
    for first in range(0, MOST, BLOCK):
        if not (file := block_file(folder, image, first)).exists():
            break
        with np.load(file) as block:
            blocks.append((block["classes"], block["attribution"]))
    if not blocks:
        return None
    classes, attribution = (np.concatenate(each) for each in zip(*blocks, strict=True))
    return Outcomes(classes, attribution)


def block_file(folder: Path, image: int, first: int) -> Path:
    return folder / f"{image:03}-{first:05}.npz"


def record(vit: FaithfulViT, picture: Picture, copies: range, cores: Executor, file: Path) -> None:
    """Draw the copies, run them through the pipeline and write what it says of each."""
    key = philox_key(picture.pixels_sha256, size=(SIDE, SIDE), seed=NOISE_SEED)

    def some(first: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        noisy = noisy_copies(picture.pixels, copies[first : first + AT_ONCE], sigma=SIGMA, key=key)
        logits, attribution = vit.pipeline(noisy, sigma=np.full(len(noisy), SIGMA, np.float32))
        return logits.argmax(axis=1), attribution

    parts = list(cores.map(some, range(0, len(copies), AT_ONCE)))
    classes, attribution = (np.concatenate(each) for each in zip(*parts, strict=True))
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as opened:
        np.savez(opened, classes=classes.astype(np.uint8), attribution=attribution)
    unfinished.rename(file)


def missing(folder: Path, images: int, copies: int) -> list[tuple[int, int]]:
    """(image, first copy) of every block that the folder lacks, the most useful first."""
    lacking = []
    for image in range(images):
        outcomes = kept(folder, image)
        done = 0 if outcomes is None else len(outcomes.classes)
        settled = outcomes is not None and all(
            outcomes.decided(asked(radius=radius)) is not None for radius in RADII
        )
        lacking += [(first > 0, settled, first, image) for first in range(done, copies, BLOCK)]
    return [(image, first) for _, _, first, image in sorted(lacking)]


def engine_of(folder: Path) -> dict[str, str] | None:
    """What the outcomes in a folder were computed with; None where there are none yet. Raises FvitError where
    it does not say."""
    if (file := folder / ENGINE).exists():
        return dict(json.loads(file.read_text()))
    if any(folder.glob("*.npz")):
        raise FvitError(f"{folder} does not say which engine its outcomes are of: give another --work")
    return None


def main(
    bundle: Annotated[str, typer.Argument(help="The demo bundle.")],
    images: Annotated[int, typer.Option(help="Held-out compositions.")] = 100,
    copies: Annotated[int, typer.Option(help="Of each image.")] = MOST,
    work: Annotated[Path, typer.Option(help="Folder for finished blocks.")] = WORK,
) -> None:
    data = compositions(images, seed=IMAGES_SEED, split="held-out")
    opened = open_bundle(bundle)
    folder = work / opened.digest[:12]
    begun = engine_of(folder)
    device = "auto" if begun is None else begun["device"]
    with fvit.load(opened, device=device) as vit, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as cores:
        if begun not in (None, vit.engine):
            raise FvitError(
                f"{folder} was begun with {begun}, which is {vit.engine} here: give another --work"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / ENGINE, vit.engine)
        for goal in sorted({min(BLOCK, copies), copies}):
            for image, first in track(missing(folder, images, goal), f"{goal:,} copies of each image"):
                record(
                    vit, vit.read(data.images[image]), range(first, first + BLOCK), cores,
                    block_file(folder, image, first),
                )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
