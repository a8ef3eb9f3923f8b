"""What two bundles certify on the same images: student and teacher, a classifier before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fvit.engines.opening import open_engine
from fvit.errors import FvitError
from fvit.runtime.bundle import Bundle, open_bundle
from fvit.runtime.images import Picture, read_image
from fvit.runtime.labels import labels_of
from fvit.runtime.loading import load

LEVELS = (0.25, 0.5)
"""The σ that bundles are compared at, and the radius that a class is to be certified at there."""

SEED = 0
"""Of the noise, the same for both bundles: the copies are compared in pairs."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Of a bundle that is made from another by training. sigmas: range of the copies' levels; precision: the
    old bundle's unless told; labels: as right_classes takes them; held_out images, n copies of each, are
    measured."""

    sigmas: tuple[float, float] = (0.12, 1.0)
    precision: str | None = None
    labels: str | None = None
    held_out: int = 60
    n: int = 320


@dataclass(frozen=True)
class Measured:
    """At one σ, over the images: share of smoothed classes that are right; share that is right and certified
    at ℓ2 radius σ; median attention radius (k = 10, or all tokens but one where there are fewer, β = 0.8;
    abstentions are 0); copies per second of the whole pipeline on this machine's CPU."""

    sigma: float
    accuracy: float
    certified: float
    radius: float
    speed: float


def right_classes(bundle: Bundle, files: Sequence[str], *, labels: str | None) -> list[int]:
    """The right class of each image: by `labels` as fvit-certify takes them, or else what the bundle's own
    classifier says of the clean image."""
    if labels is not None:
        return list(labels_of(files, labels, names=bundle.manifest.labels))
    logits, _ = classified(bundle, files)
    return [int(each) for each in logits.argmax(axis=1)]


def classified(bundle: Bundle, files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Logits [M,C] and attribution [M,N] of clean images at the classifier's size."""
    engine = open_engine(bundle.classifier, device="cpu")
    size = bundle.manifest.classifier_size
    found = [
        engine.run({"images": read_image(file, size=size).pixels[None].astype(np.float32) / 255})
        for file in files
    ]
    logits, attribution = (
        np.concatenate([each[name] for each in found]) for name in ("logits", "attribution")
    )
    return logits, attribution


def measure(folder: Path, files: Sequence[str], right: Sequence[int], *, n: int) -> list[Measured]:
    """Certify the images at each of LEVELS that the bundle's schedule knows. n: copies of each image.

    Raises FvitError where it knows none of them, or n is too small for a certificate.
    """
    bundle = open_bundle(folder)
    sigmas = bundle.manifest.schedule.sigmas
    levels = [level for level in LEVELS if sigmas[0] <= level <= sigmas[-1]]
    if not levels:
        raise FvitError(f"{folder} knows neither of σ = {' and '.join(map(str, LEVELS))}, which are compared")
    found = []
    with load(bundle) as vit:
        pictures: list[Picture] = [vit.read(file) for file in files]
        for sigma in levels:
            terms = vit.terms(sigma=sigma, n=n, k=min(10, bundle.manifest.tokens - 1), seed=SEED)
            next(vit.certify_many(pictures[:1], terms))  # what is loaded and drawn up once is not timed
            began = time.monotonic()
            certificates = list(vit.certify_many(pictures, terms))
            seconds = time.monotonic() - began
            classes = [each.class_ for each in certificates]
            hits = np.array([of.index == truth for of, truth in zip(classes, right, strict=True)])
            held = np.array([of.radius_l2 >= sigma for of in classes])
            radii = [each.attentions[0].radius_l2 for each in certificates]
            found.append(
                Measured(
                    sigma,
                    accuracy=float(hits.mean()),
                    certified=float((hits & held).mean()),
                    radius=float(np.median(radii)),
                    speed=len(pictures) * n / seconds,
                )
            )
    return found


def compare(
    folders: Mapping[str, Path], files: Sequence[str], right: Sequence[int], *, n: int, console: Console
) -> list[list[Measured]]:
    """Measure bundles by the names that they have here, the last of them the new one, and print a row for
    each bundle and σ."""
    found = [measure(folder, files, right, n=n) for folder in folders.values()]
    precision = open_bundle([*folders.values()][-1]).manifest.precision
    table = Table(title=f"{len(files)} images held out, n = {n}, {precision}")
    table.add_column("")
    for heading in ("σ", "accuracy", "certified at σ", "median attention radius", "copies/s"):
        table.add_column(heading, justify="right")
    for name, rows in zip(folders, found, strict=True):
        for row in rows:
            table.add_row(
                name, f"{row.sigma:g}", f"{row.accuracy:.1%}", f"{row.certified:.1%}", f"{row.radius:.3f}",
                f"{row.speed:,.0f}",
            )  # fmt: skip
    console.print(table)
    return found
