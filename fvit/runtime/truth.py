"""labels.csv: the right classes, where they are known, of the images whose records lie beside it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from fvit.errors import FvitError
from fvit.runtime.labels import short_lines
from fvit.runtime.pictures import written_whole

NAME = "labels.csv"
COLUMNS = ("pixels_sha256", "index", "label")


def write_truth(folder: Path, found: Iterable[tuple[str, int]], *, names: Sequence[str]) -> None:
    """Write the index of each image's right class, by SHA-256 of its pixels, and the class's name; whole or
    not at all. What the folder has of other images stays. Raises FvitError where that fails."""
    file = folder / NAME
    known = {digest: (index, names[index]) for digest, index in found}
    if not known:
        return
    kept = read_truth(folder) | known
    try:
        with written_whole(file) as part, part.open("w", encoding="utf-8", newline="") as opened:
            lines = csv.writer(opened, lineterminator="\n")
            lines.writerow(COLUMNS)
            lines.writerows((digest, *label) for digest, label in kept.items())
    except OSError as error:
        raise FvitError(f"cannot write {file}: {error.strerror}") from error


def read_truth(folder: Path) -> dict[str, tuple[int, str]]:
    """Index and name of each image's right class, by SHA-256 of its pixels; none where the file is not there.
    Raises FvitError where it is not as it was written."""
    file = folder / NAME
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            lines = list(csv.reader(short_lines(opened)))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FvitError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise FvitError(f"{file} cannot be read as CSV: mend it, or remove it") from error
    try:
        if tuple(lines[0]) != COLUMNS:
            raise ValueError
        return {digest: (int(index), label) for digest, index, label in lines[1:]}
    except (ValueError, IndexError) as error:
        raise FvitError(f"{file} has not the columns {', '.join(COLUMNS)}: mend it, or remove it") from error
