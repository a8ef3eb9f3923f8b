"""What two bundles certify on the same images: student and teacher, a classifier before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fvit.certificates.terms import Terms
from fvit.engines.opening import open_engine
from fvit.runtime.bundle import Bundle, Manifest
from fvit.runtime.faithful import terms_of
from fvit.runtime.images import Picture, read_image
from fvit.runtime.labels import labels_of
from fvit.runtime.loading import load
from fvit.runtime.masks import OBJECT, covered, fitted, masks_of, read_mask
from fvit.runtime.schedule import Schedule

Floats = NDArray[np.float32]

LEVELS = (0.25, 0.5)
"""The σ that bundles are compared at, and the radius that a class is to be certified at there."""

SEED = 0
"""Of the noise, the same for both bundles: the copies are compared in pairs."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Of a bundle that is made from another by training. sigmas: range of the copies' levels; precision: the
    old bundle's unless told; labels, masks: as HeldOut.of takes them; held_out images, n copies of each, are
    measured. device: of the bundle's own graphs, as open_engine takes it."""

    sigmas: tuple[float, float] = (0.12, 1.0)
    precision: str | None = None
    labels: str | None = None
    masks: Path | None = None
    held_out: int = 60
    n: int = 320
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Images to measure on. right: the class of each. objects: [N] each, the tokens that touch the object of
    its mask, where there are masks. n: copies of each, run on `device`."""

    files: Sequence[str]
    right: Sequence[int]
    objects: Sequence[NDArray[np.bool_]] | None
    n: int = 320
    device: str = "cpu"

    @classmethod
    def of(cls, bundle: Bundle, files: Sequence[str], *, images: Path, asked: Asked) -> HeldOut:
        """files: in the folder `images`. The right classes are those of asked.labels, as fvit-certify takes
        them, or else what the bundle's own classifier says of the clean image. Raises FvitError where labels
        or masks are missing or cannot be read, so few copies certify nothing, or the device cannot be used.
        """
        _terms(bundle.manifest, sigma=levels_of(bundle.manifest.schedule)[0], n=asked.n)
        # load and open_engine each have devices that the other lacks, and both are needed: at the end, and in
        # a loss.
        load(bundle, device=asked.device).close()
        objects = None
        if asked.masks is not None:
            found = zip(files, masks_of(files, images=images, masks=asked.masks), strict=True)
            objects = [_touching(bundle, file, mask) for file, mask in found]
        if asked.labels is not None:
            open_engine(bundle.classifier, device=asked.device, precision=bundle.manifest.precision)
            right = list(labels_of(files, asked.labels, names=bundle.manifest.labels))
        else:
            logits, _ = classified(bundle, files, device=asked.device)
            right = [int(each) for each in logits.argmax(axis=1)]
        return cls(files, right, objects, n=asked.n, device=asked.device)

    def on_object(self, tops: Sequence[Sequence[int]]) -> float | None:
        """The share of the first tokens of each image that touch its object; None without masks."""
        if self.objects is None:
            return None
        return float(np.mean([on[list(top)].mean() for on, top in zip(self.objects, tops, strict=True)]))


def _touching(bundle: Bundle, file: str, mask: Path) -> NDArray[np.bool_]:
    size = bundle.manifest.image_size
    shape = read_image(file, size=size).resized_from or size
    return covered(fitted(read_mask(mask, shape), size) == OBJECT, bundle.manifest.grid) > 0


@dataclass(frozen=True)
class Measured:
    """At one σ, over the images, in the precision that the engine ran: share of smoothed classes that are
    right; share that is right and certified at ℓ2 radius σ; median attention radius (k = 10, or all tokens
    but one where there are fewer, β = 0.8; abstentions are 0); share of the smoothed explanation's k tokens
    that touch the object, where there are masks; copies per second of the whole pipeline."""

    sigma: float
    precision: str
    accuracy: float
    certified: float
    radius: float
    on_object: float | None
    speed: float


def classified(bundle: Bundle, files: Sequence[str], *, device: str) -> tuple[Floats, Floats]:
    """Logits [M,C] and attribution [M,N] of clean images at the classifier's size."""
    engine = open_engine(bundle.classifier, device=device, precision=bundle.manifest.precision)
    size = bundle.manifest.classifier_size
    found = [
        engine.run({"images": read_image(file, size=size).pixels[None].astype(np.float32) / 255})
        for file in files
    ]
    logits, attribution = (
        np.concatenate([each[name] for each in found]) for name in ("logits", "attribution")
    )
    return logits, attribution


def levels_of(schedule: Schedule) -> list[float]:
    """Those of LEVELS that a schedule knows; its ends, where it knows neither."""
    return [level for level in LEVELS if schedule.knows(level)] or schedule.sigmas[[0, -1]].tolist()


def _terms(manifest: Manifest, *, sigma: float, n: int) -> Terms:
    return terms_of(manifest, sigma=sigma, n=n, k=min(10, manifest.tokens - 1), seed=SEED)


def measure(bundle: Bundle, held_out: HeldOut, *, levels: Sequence[float]) -> list[Measured]:
    """Certify the images at each of these σ."""
    found = []
    with load(bundle, device=held_out.device) as vit:
        pictures: list[Picture] = [vit.read(file) for file in held_out.files]
        for sigma in levels:
            terms, n = _terms(bundle.manifest, sigma=sigma, n=held_out.n), held_out.n
            next(vit.certify_many(pictures[:1], terms))  # what is loaded and drawn up once is not timed
            began = time.monotonic()
            certificates = list(vit.certify_many(pictures, terms))
            seconds = time.monotonic() - began
            classes = [each.class_ for each in certificates]
            hits = np.array([of.index == truth for of, truth in zip(classes, held_out.right, strict=True)])
            held = np.array([of.radius_l2 >= sigma for of in classes])
            radii = [each.attention.radius_l2 for each in certificates]
            found.append(
                Measured(
                    sigma,
                    str(vit.engine["precision"]),
                    accuracy=float(hits.mean()),
                    certified=float((hits & held).mean()),
                    radius=float(np.median(radii)),
                    on_object=held_out.on_object([each.attention.tokens for each in certificates]),
                    speed=len(pictures) * n / seconds,
                )
            )
    return found


def compare(bundles: Mapping[str, Bundle], held_out: HeldOut, *, console: Console) -> list[list[Measured]]:
    """Measure bundles by the names that they have here, the last of them the new one, at the levels of this
    that each knows, and print a row for each bundle and σ."""
    new = [*bundles.values()][-1].manifest
    found = []
    for bundle in bundles.values():
        levels = [level for level in levels_of(new.schedule) if bundle.manifest.schedule.knows(level)]
        found.append(measure(bundle, held_out, levels=levels))
    table = Table(title=f"{len(held_out.files)} images held out, n = {held_out.n}")
    table.add_column("")
    headings = [
        "precision",
        "σ",
        "accuracy",
        "certified at σ",
        "median attention radius",
        "on the object",
        "copies/s",
    ]
    if held_out.objects is None:
        headings.remove("on the object")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, rows in zip(bundles, found, strict=True):
        for row in rows:
            cells = [
                row.precision,
                f"{row.sigma:g}",
                f"{row.accuracy:.1%}",
                f"{row.certified:.1%}",
                f"{row.radius:.3f}",
            ]
            cells += [] if row.on_object is None else [f"{row.on_object:.1%}"]
            table.add_row(name, *cells, f"{row.speed:,.0f}")
    console.print(table)
    return found
