"""certificates.jsonl: one record an image, appended as each is done; a second run continues it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fvit.errors import FvitError
from fvit.runtime.images import Picture
from fvit.runtime.record import Terms

NAME = "certificates.jsonl"


class Journal:
    """The records in an output folder.

    A record that a crash cut off in the middle is dropped when the journal is opened. Raises
    FvitError where the folder cannot be written or a whole line is no record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file.touch()
            data = self.file.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                os.truncate(self.file, len(whole))
        except OSError as error:
            raise FvitError(f"cannot write to {folder}: {error.strerror}") from error
        self.records: list[dict[str, Any]] = [
            self._parsed(line, number) for number, line in enumerate(whole.decode().splitlines(), 1)
        ]

    def find(self, picture: Picture, terms: Terms, *, bundle: str) -> dict[str, Any] | None:
        """The record of this image on these terms with this bundle, if it is there."""
        wanted = identity(picture.name, picture.sha256, terms, bundle)
        return next((record for record in self.records if _identity_of(record) == wanted), None)

    def append(self, record: dict[str, Any]) -> None:
        """Write one line and push it to the disk. Raises FvitError where that fails; then the
        file holds only whole lines."""
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        size = self.file.stat().st_size
        try:
            with self.file.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            os.truncate(self.file, size)
            raise FvitError(f"cannot write {self.file}: {error.strerror}") from error
        self.records.append(record)

    def _parsed(self, line: str, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
            _identity_of(record)
        except (ValueError, KeyError, TypeError) as error:
            raise FvitError(f"{self.file}, line {number} is no record: move the file away") from error
        return dict(record)


def identity(name: str, sha256: str, terms: Terms, bundle: str) -> tuple[Any, ...]:
    """What makes two records the same work: image, bundle and terms."""
    return (
        name, sha256, bundle, terms.sigma, terms.n0, terms.n, terms.alpha,
        terms.k, terms.beta, terms.aggregate, terms.seed,
    )  # fmt: skip


def _identity_of(record: dict[str, Any]) -> tuple[Any, ...]:
    attention = record["attention"]
    terms = Terms(
        sigma=record["sigma"], n0=record["n0"], n=record["n"], alpha=record["alpha"], seed=record["seed"],
        k=attention["k"], beta=attention["beta"], aggregate=attention["aggregate"],
    )  # fmt: skip
    return identity(record["image"], record["sha256"], terms, record["bundle"])
