"""certificates.jsonl: one record an image, appended as each is done; a second run continues it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from fvit.certificates.record import Terms, terms_of
from fvit.errors import FvitError
from fvit.runtime.images import Picture

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
            parsed(line, file=self.file, number=number)
            for number, line in enumerate(whole.decode().splitlines(), 1)
        ]

    def find(self, picture: Picture, terms: Terms, *, bundle: str) -> dict[str, Any] | None:
        """The record of this image on these terms with this bundle, if it is there."""

        def matches(record: dict[str, Any]) -> bool:
            same = (record["image"], record["sha256"], record["bundle"])
            return (
                same == (picture.name, picture.sha256, bundle)
                and dataclasses.replace(terms_of(record), batch=terms.batch) == terms
            )

        return next(filter(matches, self.records), None)

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


def parsed(line: str, *, file: Path, number: int) -> dict[str, Any]:
    """One line of a journal. Raises FvitError where it is no record."""
    try:
        record = dict(json.loads(line))
        terms_of(record)
        record["image"], record["sha256"], record["bundle"]
    except (ValueError, KeyError, TypeError) as error:
        raise FvitError(f"{file}, line {number} is no record of fvit-certify") from error
    return record
