"""What a run came to: how many images, abstentions, what holds at which radii, and how often it is right."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.runtime.pictures import written_whole

HEAD = b'{\n "images": '
"""How every summary begins."""


def check_place(file: Path, *, out: Path | None) -> None:
    """Raises FvitError where no summary can be written, which is to be known before the work is done, or
    where one would take the place of anything else. out: a folder that will be there by then."""
    if file.exists() and not file.is_file():  # what takes its place would take that of a device
        raise FvitError(f"--summary {file} is no regular file: choose another place")
    if file.suffix != ".json":  # as nothing is called that a run writes
        raise FvitError(f"--summary {file}: give it a name that ends in .json")
    if file.exists() and not _is_summary(file):
        raise FvitError(f"--summary {file} is there, and no summary: choose another place")
    folder = file.parent.resolve()
    made = [] if out is None else [out.resolve(), *out.resolve().parents]
    if folder not in made and not os.access(folder, os.W_OK | os.X_OK):
        raise FvitError(f"--summary {file}: {file.parent} is no folder to write to: choose another place")


def _is_summary(file: Path) -> bool:
    """Whether a file begins as one does, or is empty."""
    with file.open("rb") as opened:
        return opened.read(len(HEAD)) in (HEAD, b"")


@dataclass
class At:
    """Of how many images something is certified at an ℓ2 radius: the class; the main explanation; a class
    that is right."""

    radius: float
    of_class: int = 0
    attention: int = 0
    right: int = 0


@dataclass
class Summary:
    """Counts over the images of a run, to which each record is added as it is there.

    images: so many were given. radii: at which it says what is certified; asked: whether a person asked for
    that. labelled: whether each image's right class is known. failed: could not be read. repeated: have the
    pixels of one before. before: were done by an earlier run.
    """

    terms: Terms
    images: int
    radii: Sequence[float]
    asked: bool
    labelled: bool
    records: int = 0
    failed: int = 0
    repeated: int = 0
    before: int = 0
    copies: int = 0
    abstained: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    at: list[At] = field(init=False)
    _started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.at = [At(radius) for radius in self.radii]

    def add(self, certificate: Certificate, *, right: int | None, before: bool) -> None:
        """Count a record. right: the index of the image's right class, where that is known. before: whether
        an earlier run made it."""
        of_class, attention = certificate.class_, certificate.attention
        self.records += 1
        self.before += before
        self.copies += 0 if before else certificate.copies
        self.abstained.update({"class": int(of_class.abstained), "attention": int(attention.abstained)})
        if certificate.decision is not None:
            self.answers[certificate.decision.answer] += 1
        for at in self.at:
            holds = not of_class.abstained and of_class.radius_l2 >= at.radius
            at.of_class += holds
            at.right += holds and of_class.index == right
            at.attention += not attention.abstained and attention.radius_l2 >= at.radius

    def table(self) -> Table:
        """What is certified at each radius, as shares of all records."""
        drawn = Table(title=f"of {self.records:,} images, at ℓ2 radius")
        headings = ["radius", "class certified", "explanation certified"]
        for heading in [*headings, "certified accuracy"] if self.labelled else headings:
            drawn.add_column(heading, justify="right")
        for at in self.at:
            counts = [at.of_class, at.attention, *([at.right] if self.labelled else [])]
            shares = (f"{100 * count / self.records:.1f} %" for count in counts)
            drawn.add_row(f"{at.radius:g}", *shares)
        return drawn

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; shares are of all records."""
        seconds = time.perf_counter() - self._started
        return {
            "images": self.images,
            "records": self.records,
            "before": self.before,
            "repeated": self.repeated,
            "failed": self.failed,
            "left": self.images - self.records - self.repeated - self.failed,
            "copies": self.copies,
            "seconds": round(seconds, 3),
            "terms": self._terms(),
            "abstained": {claim: self.abstained[claim] for claim in ("class", "attention")},
            **({} if self.terms.radius is None else {"decisions": dict(self.answers)}),
            "certified": [self._shares(at) for at in self.at] if self.records else [],
        }

    def write(self, file: Path) -> None:
        """Write it as JSON, whole or not at all; raises FvitError where that fails."""
        try:
            with written_whole(file) as part:
                part.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        except OSError as error:
            raise FvitError(f"cannot write {file}: {error.strerror}") from error

    def _terms(self) -> dict[str, Any]:
        asked = {
            "sigma": self.terms.sigma, "n": self.terms.n, "alpha": self.terms.alpha, "k": list(self.terms.k),
            "beta": self.terms.beta, "aggregate": self.terms.aggregate, "radius": self.terms.radius,
            "seed": self.terms.seed,
        }  # fmt: skip
        return {name: value for name, value in asked.items() if value is not None}

    def _shares(self, at: At) -> dict[str, float]:
        shares = {"radius": at.radius, "class": at.of_class / self.records}
        shares["attention"] = at.attention / self.records
        return shares | ({"accuracy": at.right / self.records} if self.labelled else {})
