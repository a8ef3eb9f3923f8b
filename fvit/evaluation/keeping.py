"""measures.jsonl: what an evaluation asks, and then one line an image, appended as each is done.

It lies beside certificates.jsonl and belongs to whoever owns that (journal.py). A last line that a crash
cut off is dropped.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, ValidationError

from fvit.certificates.claims import Count, Part
from fvit.certificates.record import Digest
from fvit.errors import FvitError
from fvit.evaluation.measures import Measures
from fvit.evaluation.measuring import mask_sha256
from fvit.runtime.images import Picture
from fvit.runtime.masks import Mask

NAME = "measures.jsonl"

HEADS = (b'{"bundle":"', b'{"image":"')
"""How the first line begins, and every other, by which a line that was cut off is told from what is none."""


class Asked(Part):
    """What every image of an evaluation is asked; the first line of the file.

    engine: what computes, as engine_of has it: another computes another function.
    perturbed_n: copies of an image that lacks tokens. attack_steps: of each attack, where there are any.
    secret: what the images' seeds are made from, unless one was given; it was drawn when the evaluation
    began.
    """

    bundle: Digest
    engine: str
    sigma: float
    n: Count
    alpha: float
    k: Count
    beta: float
    perturbed_n: Count
    attack_steps: Count | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    secret: Digest | None = None

    def seed_of(self, picture: Picture) -> int:
        """The seed of an image's noise: the one that was given, or the first 8 bytes, little-endian, of
        SHA-256(secret ‖ SHA-256 of its pixels). Whoever has not seen the secret knows no seed before its
        record, and stopping a run changes none."""
        if self.secret is None:
            assert self.seed is not None
            return self.seed
        parts = bytes.fromhex(self.secret) + bytes.fromhex(picture.pixels_sha256)
        return int.from_bytes(hashlib.sha256(parts).digest()[:8], "little")


def engine_of(engine: Mapping[str, str]) -> str:
    """Name, kind of device and precision of what computes, as FaithfulViT.engine and records have them, in
    words."""
    return f"{engine['name']} on {engine['device'].partition(':')[0]} in {engine['precision']}"


class Key(NamedTuple):
    """What measures are of: pixels, their mask, and the certificate's seed."""

    pixels: str
    mask: str | None
    seed: int


class Kept:
    """The measures in an output folder.

    asked: without a seed it gets a secret, that of the file where there is one. Raises FvitError where the
    file cannot be written, answers another question (which is named) or has a line that is none of it.
    """

    def __init__(self, folder: Path, asked: Asked) -> None:
        self.file = folder / NAME
        # The length of each line, and where it begins: lines are read when they are wanted.
        self._places: dict[Key, tuple[int, int]] = {}
        try:
            self._opened = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                self.asked = self._begin(asked)
            except BaseException:
                os.close(self._opened)
                raise
        except OSError as error:
            raise FvitError(f"cannot write {self.file}: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._opened)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def find(self, picture: Picture, mask: Mask | None, *, seed: int) -> Measures | None:
        """The measures of these pixels and this mask with the certificate of this seed, or None."""
        place = self._places.get(
            Key(picture.pixels_sha256, None if mask is None else mask_sha256(mask), seed)
        )
        return None if place is None else Measures.model_validate_json(os.pread(self._opened, *place))

    def append(self, measures: Measures) -> None:
        """Write one line and push it to the disk. Raises FvitError where that fails, and nothing of it is in
        the file then."""
        try:
            self._write(measures)
        except OSError as error:
            raise FvitError(f"cannot write {self.file}: {error.strerror}") from error

    def _begin(self, asked: Asked) -> Asked:
        """What the file says that is asked, and where its lines lie."""
        begun, end = None, 0
        with os.fdopen(os.dup(self._opened), "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if _is_torn(line, HEADS[number > 1]):
                    os.ftruncate(self._opened, end)
                    break
                if begun is None:
                    begun = self._begun(line, asked)
                else:
                    self._places[_key(self._measures(line, number))] = (len(line), end)
                end += len(line)
        if begun is None:
            begun = asked
            if asked.seed is None:
                begun = asked.model_copy(update={"secret": secrets.token_hex(32)})
            self._write(begun)
        return begun

    def _measures(self, line: bytes, number: int) -> Measures:
        try:
            return Measures.model_validate_json(line)
        except ValidationError as error:
            raise FvitError(
                f"{self.file}, line {number} is no line of fvit-evaluate: choose another --out or mend it"
            ) from error

    def _begun(self, line: bytes, asked: Asked) -> Asked:
        try:
            begun = Asked.model_validate_json(line)
        except ValidationError as error:
            raise FvitError(
                f"{self.file} was not begun by this fvit-evaluate: choose another --out"
            ) from error
        for name, there in begun:
            here = getattr(asked, name)
            if name != "secret" and there != here:
                nothing = {"seed": "entropy", "attack_steps": 0}
                words = [nothing[name] if value is None else value for value in (there, here)]
                raise FvitError(
                    f"{self.file.parent} holds an evaluation with {name} = {words[0]}, not {words[1]}: "
                    "choose another --out"
                )
        return begun

    def _write(self, what: Asked | Measures) -> None:
        line = what.model_dump_json(exclude_none=True).encode() + b"\n"
        start = os.fstat(self._opened).st_size
        try:
            done = 0
            while done < len(line):
                done += os.write(self._opened, line[done:])
            os.fsync(self._opened)
        except BaseException:
            os.ftruncate(self._opened, start)
            raise
        if isinstance(what, Measures):
            self._places[_key(what)] = (len(line), start)


def _key(measures: Measures) -> Key:
    return Key(measures.pixels_sha256, None if measures.mask is None else measures.mask.sha256, measures.seed)


def _is_torn(line: bytes, head: bytes) -> bool:
    return not line.endswith(b"\n") and (line.startswith(head) or head.startswith(line))
