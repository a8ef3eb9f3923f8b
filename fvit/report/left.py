"""What fvit-certify or fvit-evaluate left in a folder, read and checked; nothing is altered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from fvit.certificates.claims import AttentionClaim
from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.evaluation import evaluate
from fvit.evaluation.adversarial import broken_in
from fvit.evaluation.keeping import NAME as MEASURES
from fvit.evaluation.measures import Measures
from fvit.runtime import truth
from fvit.runtime.journal import NAME
from fvit.runtime.thumbnails import FOLDER
from fvit.runtime.verifying import lines_of

Question = tuple[str, Terms]
"""What records answer: the bundle, and the terms without a seed."""


@dataclass(frozen=True)
class Left:
    """A folder with records.

    labels: index and name of the right class, by SHA-256 of an image's pixels, where it is known.
    evaluation: the tables of fvit-evaluate, where it made them. plain: what the classifier says of an image
    as it is, by the image's pixels and its record's seed, where fvit-evaluate asked. broken: the images, by
    their pixels, of which an attack of fvit-evaluate refuted the record.
    """

    folder: Path
    labels: dict[str, tuple[int, str]]
    evaluation: dict[str, Any] | None
    plain: dict[tuple[str, int], int]
    broken: frozenset[str]

    @classmethod
    def of(cls, folder: Path) -> Left:
        """Raises FvitError where the folder holds no records, or what lies beside them is not as it was
        written."""
        if not folder.is_dir():
            raise FvitError(f"{folder} is no folder: give one that fvit-certify --out or fvit-evaluate made")
        if not (folder / NAME).exists():
            raise FvitError(
                f"{folder} holds no {NAME}: give a folder that fvit-certify --out or fvit-evaluate made"
            )
        broken = frozenset(broken_in(folder))
        return cls(folder, truth.read_truth(folder), _tables(folder), _plain(folder), broken)

    def certificates(self) -> Iterator[Certificate]:
        """The records, in the order of the file; a last line that a crash cut off is left out.

        Raises FvitError where a line is no record, or records answer several questions.
        """
        asked: Question | None = None
        broken: FvitError | None = None
        for number, line in lines_of(self.folder / NAME):
            if broken is not None:
                raise broken
            where = f"{self.folder / NAME}, line {number}"
            if isinstance(line, FvitError):
                broken = FvitError(f"{where} {line}")
                continue
            try:
                certificate = Certificate.model_validate(line)
            except ValidationError as error:
                raise FvitError(
                    f"{where} is no record of this fvit: fvit-verify says what is wrong with it"
                ) from error
            if not all(map(_is_whole, certificate.attentions)):
                raise FvitError(f"{where} contradicts itself: fvit-verify says where")
            question = (certificate.bundle, replace(certificate.terms, seed=None))
            if asked is None:
                asked = question
            elif asked != question:
                raise FvitError(
                    f"{where} answers another question ({_differing(asked, question)}) than line 1, and a "
                    "report is of one: certify each into a folder of its own"
                )
            yield certificate
        if asked is None:
            raise broken or FvitError(f"{self.folder / NAME} holds no record")

    def label(self, certificate: Certificate) -> tuple[int, str] | None:
        """Index and name of the class that is right, where it is known."""
        return self.labels.get(certificate.pixels_sha256)

    def strip(self, pixels_sha256: str) -> bytes | None:
        """An image, its noisy copy and its denoised copy as a WebP, where there is one."""
        try:
            found = (self.folder / FOLDER / f"{pixels_sha256}.webp").read_bytes()
        except OSError:
            return None
        return found if found[:4] == b"RIFF" and found[8:12] == b"WEBP" else None

    def plain_explanation(self, pixels_sha256: str, *, grid: tuple[int, int]) -> list[int] | None:
        """[N] the classifier's explanation of the image as it is, the largest token 255, where there is one
        of this grid."""
        try:
            with Image.open(self.folder / FOLDER / f"{pixels_sha256}.png") as image:
                if image.format != "PNG" or image.size != grid[::-1]:
                    return None
                return [int(value) for value in np.asarray(image.convert("L")).ravel()]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None


def _tables(folder: Path) -> dict[str, Any] | None:
    file = folder / evaluate.NAME
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FvitError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FvitError(f"{file} is no JSON: run fvit-evaluate again, which writes it anew") from error
    if not isinstance(found, dict) or not found:
        raise FvitError(f"{file} holds no tables: run fvit-evaluate again, which writes it anew")
    return found


def _plain(folder: Path) -> dict[tuple[str, int], int]:
    file = folder / MEASURES
    if not file.exists():
        return {}
    found = {}
    for number, line in lines_of(file):
        if number == 1 or isinstance(line, FvitError):  # what was asked; a line that a crash cut off
            continue
        try:
            measures = Measures.model_validate(line)
        except ValidationError as error:
            raise FvitError(f"{file}, line {number} is no line of fvit-evaluate: mend it") from error
        found[measures.pixels_sha256, measures.seed] = measures.plain.index
    return found


def _is_whole(claim: AttentionClaim) -> bool:
    tokens = claim.grid[0] * claim.grid[1]
    return (
        len(claim.votes) == len(claim.sums) == tokens
        and len(claim.tokens) == len(claim.token_radii) == claim.k
        and max(claim.tokens) < tokens
        and claim.copies > 0
        and sum(claim.sums) > 0
        and (claim.map_radii is None or len(claim.map_radii) == tokens)
    )


def _differing(one: Question, other: Question) -> str:
    if one[0] != other[0]:
        return f"of bundle {other[0][:12]}…, not {one[0][:12]}…"
    pairs = ((name, vars(one[1])[name], value) for name, value in vars(other[1]).items())
    return ", ".join(f"{name} = {here}, not {there}" for name, there, here in pairs if here != there)
