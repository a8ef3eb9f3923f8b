"""certificates.jsonl: one record an image, appended as each is done; a later run continues it.

A run owns its folder while it lasts. What it finds there is never altered, but for one thing: a last line
that a crash cut off is dropped when the next record is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.runtime.images import Picture
from fvit.runtime.lock import Lock, lies_at

NAME = "certificates.jsonl"
LOCK = NAME + ".lock"

LONGEST = 1 << 24
"""Bytes of a line: a record of ten thousand tokens takes a fifth of this."""

HEAD = b'{"image": "'
"""How every line begins, by which a line that was cut off is told from what is no journal."""

ESCAPED = re.compile("[\ud800-\udfff\x85\u2028\u2029]")
"""What JSON may hold as it is, but UTF-8 cannot, or other programs take for the end of a line."""


class Claim(NamedTuple):
    """What a record claims by, less its image and its seed: records of an image that differ in none of this
    answer the same question."""

    bundle: str
    sigma: float
    n: int
    alpha: float
    k: tuple[int, ...]
    beta: float
    aggregate: str
    bound: str
    radius: float | None


class Place(NamedTuple):
    """Where a record lies in the file, in bytes, and the seed that it was made with."""

    seed: int
    start: int
    length: int


class Journal:
    """The records in an output folder, which belongs to this process until `close`, or until it ends.

    Raises FvitError where another process owns the folder (named), it cannot be written, or a line of the
    file is no record (numbered); the file is then as it was.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / NAME
        # By the bytes of the pixels' digest: all that is kept of a record, of which there may be many.
        self._places: dict[Claim, dict[bytes, tuple[Place, ...]]] = {}
        # The next record goes to _end, after _gap, in a file that has _size bytes.
        self._end = self._size = 0
        self._gap = b""
        with contextlib.ExitStack() as opened:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                opened.callback(Lock(folder / LOCK).close)
                self._journal = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
                opened.callback(os.close, self._journal)
                self._read()
            except OSError as error:
                raise FvitError(f"cannot write to {folder}: {error.strerror}") from error
            self._opened = opened.pop_all()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the folder."""
        self._opened.close()

    def find(self, picture: Picture, terms: Terms, *, bundle: str) -> Certificate | None:
        """The first record of these pixels on these terms with this bundle, or None.

        Where the terms have no seed, a record made with any will do: the same claim at another seed is no new
        evidence. Raises FvitError where the record is damaged.
        """
        places = self._places.get(_claim_of_terms(terms, bundle=bundle), {})
        of_picture = places.get(bytes.fromhex(picture.pixels_sha256), ())
        place = next((place for place in of_picture if terms.seed in (None, place.seed)), None)
        return None if place is None else self._certificate(place.start, place.length)

    def __iter__(self) -> Iterator[Certificate]:
        """All records, in the order in which they were made. Raises FvitError where one is damaged."""
        for start, length in sorted((place.start, place.length) for place in self._kept()):
            yield self._certificate(start, length)

    def append(self, record: dict[str, Any]) -> None:
        """Write one line and push it to the disk.

        Raises FvitError where that fails, where the record is longer than LONGEST, or where something else
        has changed the file; nothing of this record is in it then.
        """
        line = json.dumps({"image": record["image"]} | record, ensure_ascii=False)
        data = ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", line).encode()
        if len(data) >= LONGEST:
            raise FvitError(
                f"the record of {record['image']} would have {len(data):,} bytes, more than a line of {NAME} "
                f"may have ({LONGEST:,}): give fewer --top-k"
            )
        try:
            self._check_untouched()
            try:
                os.ftruncate(self._journal, self._end)
                _write(self._journal, self._gap + data + b"\n", at=self._end)
                os.fsync(self._journal)
            except BaseException:
                self._size = self._end
                os.ftruncate(self._journal, self._end)
                raise
        except OSError as error:
            raise FvitError(f"cannot write {self.file}: {error.strerror}") from error
        start = self._end + len(self._gap)
        self._keep(record, start, len(data))
        self._end = self._size = start + len(data) + 1
        self._gap = b""

    def _read(self) -> None:
        if not stat.S_ISREG(os.fstat(self._journal).st_mode):
            raise FvitError(f"{self.file} is no regular file: choose another --out")
        number = 0
        # Lines of bytes, because lines of text would also end at U+2028 and its like.
        with os.fdopen(os.dup(self._journal), "rb") as lines:
            while line := lines.readline(LONGEST + 1):
                if len(line) > LONGEST:
                    raise _no_record(self.file, number + 1)
                self._size += len(line)
                if _is_torn(line):
                    break
                number += 1
                self._keep(parsed(line, file=self.file, number=number), self._end, len(line))
                self._end = self._size
                self._gap = b"" if line.endswith(b"\n") else b"\n"

    def _keep(self, record: dict[str, Any], start: int, length: int) -> None:
        places = self._places.setdefault(_claim_of_record(record), {})
        digest = bytes.fromhex(record["pixels_sha256"])
        places[digest] = (*places.get(digest, ()), Place(record["seed"], start, length))

    def _kept(self) -> Iterator[Place]:
        return (place for of in self._places.values() for each in of.values() for place in each)

    def _certificate(self, start: int, length: int) -> Certificate:
        try:
            return Certificate.model_validate(json.loads(os.pread(self._journal, length, start)))
        except (OSError, ValidationError, ValueError) as error:
            raise _no_record(self.file, self._number(start)) from error

    def _number(self, start: int) -> int:
        """Of the line that starts there: every line is a record."""
        return 1 + sum(place.start < start for place in self._kept())

    def _check_untouched(self) -> None:
        if not lies_at(self._journal, self.file) or os.fstat(self._journal).st_size != self._size:
            raise FvitError(
                f"{self.file} was changed by something else while this run owned it: nothing more is written"
            )


def parsed(line: bytes, *, file: Path, number: int) -> dict[str, Any]:
    """One line of a journal, checked as far as finding it again needs. Raises FvitError where it is no
    record."""
    try:
        record = json.loads(line.decode())
        if isinstance(record, dict) and "n0" in record:
            raise FvitError(f"{file}, line {number} was written by an fvit before 0.2: choose another --out")
        if not isinstance(record["image"], str):
            raise TypeError
        bytes.fromhex(record["pixels_sha256"])
        if type(record["seed"]) is not int:
            raise TypeError
        hash(_claim_of_record(record))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _no_record(file, number) from error
    return dict(record)


def _no_record(file: Path, number: int) -> FvitError:
    return FvitError(
        f"{file}, line {number} is no record of fvit-certify: choose another --out or mend the line"
    )


def _claim_of_terms(terms: Terms, *, bundle: str) -> Claim:
    return Claim(
        bundle,
        terms.sigma,
        terms.n,
        terms.alpha,
        terms.k,
        terms.beta,
        terms.aggregate,
        terms.bound,
        terms.radius,
    )


def _claim_of_record(record: dict[str, Any]) -> Claim:
    attention, decision = record["attention"], record.get("decision")
    return Claim(
        record["bundle"],
        record["sigma"],
        record["n"],
        record["alpha"],
        tuple(explanation["k"] for explanation in record.get("explanations", [attention])),
        attention["beta"],
        attention["aggregate"],
        record["bound"],
        None if decision is None else decision["radius"],
    )


def _is_torn(line: bytes) -> bool:
    """Whether this is a record that a crash cut off: one that lacks more than the end of its line."""
    if line.endswith(b"\n") or not (line.startswith(HEAD) or HEAD.startswith(line)):
        return False
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError):
        return True
    return False


def _write(file: int, data: bytes, *, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], at + done)
