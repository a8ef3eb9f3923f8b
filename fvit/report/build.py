"""From a folder to its report: one pass over the records for the figures, one over the thumbnails for the
page."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fvit.certificates.record import Certificate
from fvit.errors import FvitError
from fvit.evaluation.evaluate import radii_of
from fvit.evaluation.figures import Rows
from fvit.evaluation.rows import record_row
from fvit.evaluation.tables import record_tables
from fvit.report.charts import distributions, sections_of
from fvit.report.gallery import Shown, columns_of, groups_of
from fvit.report.left import Left
from fvit.report.page import in_text, packed, page_around
from fvit.report.strips import reduced, step_for
from fvit.report.summary import summary_of
from fvit.runtime.pictures import written_whole

NAME = "report.html"

GALLERY = 10_000
"""Images that are shown, the worst; figures are of all."""

CHUNK = 24
"""Images that the page unpacks at once."""

MOST = 36_000_000
"""Bytes that a page may take; thumbnails are made smaller where they would take more."""

SAMPLE = 50
"""Thumbnails by which it is seen how small they have to be."""

TEXT = 3 / 4
"""Bytes that a character of base64 holds."""


def write_report(folder: Path) -> Path:
    """Write report.html into a folder that fvit-certify or fvit-evaluate left, whole or not at all; its path.

    Raises FvitError where the folder is none, what lies in it is damaged or of several questions, or the
    file cannot be written.
    """
    found = _Found(Left.of(folder))
    file = folder / NAME
    if file.exists() and not file.is_file():  # what takes its place would take that of a device
        raise FvitError(f"{file} is no regular file: move it away")
    try:
        with written_whole(file) as part, part.open("w", encoding="utf-8", newline="\n") as opened:
            opened.writelines(page_around(folder.absolute().name, found.data(), found.chunks()))
    except OSError as error:
        raise FvitError(f"cannot write {file}: {error.strerror}") from error
    return file


@dataclass(frozen=True)
class _Kept:
    """Of a record: what is said of it, whose image it is, and its claim as compressed JSON."""

    shown: Shown
    pixels: str
    claim: bytes


class _Found:
    """What a page is made of."""

    def __init__(self, left: Left) -> None:
        self._left = left
        rows, kept = Rows(), []
        radii: dict[str, list[float]] = {"class": [], "explanation": []}
        widest, mapped = 0.0, False
        names = _names(left)
        first: Certificate | None = None
        for certificate in left.certificates():
            if first is None:
                first, mapped = certificate, certificate.attention.map_radii is not None
                at = radii_of(certificate.terms)
            label = left.label(certificate)
            if left.evaluation is None:
                rows.add(record_row(None if label is None else label[0], certificate, radii=at))
            for name, claim in (("class", certificate.class_), ("explanation", certificate.attention)):
                if not claim.abstained:
                    radii[name].append(claim.radius_l2)
            sides = certificate.attention.map_radii or ()
            widest = max(widest, certificate.attention.radius_l2, *map(abs, sides))
            plain = left.plain.get((certificate.pixels_sha256, certificate.seed))
            broken = certificate.pixels_sha256 in left.broken
            shown = Shown.of(certificate, label=label, plain=plain, broken=broken, names=names)
            kept.append(_Kept(shown, certificate.pixels_sha256, zlib.compress(_claim(certificate, left), 1)))
        assert first is not None  # Left raises where there is none
        kept.sort(key=lambda each: each.shown.badness)
        self.images = len(kept)
        self._first, self._radii, self._widest = first, radii, widest
        self._kept = kept[:GALLERY]
        labelled = any(each.shown.label is not None for each in kept)
        self._tables = left.evaluation or record_tables(
            rows.figures(), radii=at, labelled=labelled, mapped=mapped
        )

    def data(self) -> dict[str, Any]:
        """What is there when the page opens."""
        shown = [each.shown for each in self._kept]
        sections = sections_of(self._tables)
        sections.insert(1, distributions(self._radii))
        decision = self._first.decision
        certified = self._radii["explanation"]
        median = float(np.median(certified)) if certified else 0.0
        return {
            "fvit": self._first.fvit,
            "images": self.images,
            "summary": asdict(
                summary_of(self._first, self._tables, images=self.images, broken=len(self._left.broken))
            ),
            "sections": [asdict(section) for section in sections],
            "columns": columns_of(shown),
            "groups": groups_of(shown),
            "chunk": CHUNK,
            "radius": median if decision is None else decision.radius,
            "widest": self._widest,
        }

    def chunks(self) -> Iterator[str]:
        """The images, CHUNK at a time: a line with their claims, then a line an image with its strip, or
        nothing where there is none."""
        parts = [self._kept[place : place + CHUNK] for place in range(0, len(self._kept), CHUNK)]
        claims = [
            packed(b"[" + b",".join(zlib.decompress(each.claim) for each in part) + b"]") for part in parts
        ]
        room = (MOST - sum(map(len, claims))) * TEXT / len(self._kept)
        some = [self._left.strip(each.pixels) for each in self._kept[:: max(1, len(self._kept) // SAMPLE)]]
        step = step_for([strip for strip in some if strip is not None], most=room)
        for part, text in zip(parts, claims, strict=True):
            strips = (self._left.strip(each.pixels) for each in part)
            shown = (strip if strip is None or step is None else reduced(strip, step) for strip in strips)
            yield "\n".join((text, *(in_text(strip or b"") for strip in shown)))


def _claim(certificate: Certificate, left: Left) -> bytes:
    """What is drawn of a record, as canvas.js takes it."""
    claim = certificate.attention
    fields = {"grid", "k", "tokens", "votes", "token_radii", "map_radii"}
    found = claim.model_dump(mode="json", include=fields, exclude_none=True)
    found |= {
        "copies": certificate.copies,
        "size": certificate.size,
        "plain": left.plain_explanation(certificate.pixels_sha256, grid=claim.grid),
    }
    if claim.aggregate == "mean":  # that of votes is their share of the copies
        found["smoothed"] = [round(value, 6) for value in claim.smoothed.tolist()]
    return json.dumps(found, separators=(",", ":")).encode()


def _names(left: Left) -> dict[int, str]:
    """Of classes, by index, as far as they are known."""
    names = dict(left.labels.values())
    listed = (left.evaluation or {}).get("labels")
    if isinstance(listed, list):
        names |= {index: str(name) for index, name in enumerate(listed)}
    return names
