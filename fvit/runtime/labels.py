"""The right class of each image: from the folder that it lies in, or from a CSV file."""

from __future__ import annotations

import csv
import io
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from fvit.errors import FvitError
from fvit.runtime.images import reason_of
from fvit.runtime.inputs import open_plain

FOLDERS = "folders"
"""What is given in the place of a file where each class has its folder."""

SEVERAL = -1
"""In the place of an index: more than one class is called so."""

LONGEST_LINE = 1 << 20
"""Characters: csv bounds a field, and only when its line is in memory."""


def labels_of(files: Sequence[str], source: str, *, names: Sequence[str]) -> array[int]:
    """The index of each image's right class.

    source: "folders", where an image's label is the name of the folder that it lies in; or a CSV file, the
    first line of which names its columns, `file` and `label` among them. There a file is a path, relative to
    the CSV's folder, or a bare name. A label is a class's name among `names`, the bundle's, or its index.
    Folders that are neither, and of which there are as many as classes, stand for the classes in the order
    of their names, as torchvision's ImageFolder has it.
    Raises FvitError where the CSV cannot be read, lacks an image, or a label stands for no class.
    """
    if source == FOLDERS:
        labels = [Path(file).absolute().parent.name for file in files]
    else:
        known = _of_csv(source)
        labels = [_looked_up(file, known, source) for file in files]
    return _indices(labels, source, names)


def _looked_up(file: str, known: dict[str, str], source: str) -> str:
    label = known.get(_absolute(file), known.get(Path(file).name))
    if label is None:
        raise FvitError(f"{file} has no label in {source}: add it there")
    return label


def _of_csv(source: str) -> dict[str, str]:
    """Labels by absolute path, or by bare name."""
    folder = Path(source).absolute().parent
    known: dict[str, str] = {}
    try:
        with open_plain(source) as opened:
            text = io.TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="")
            lines = csv.DictReader(short_lines(text))
            if missing := {"file", "label"} - set(lines.fieldnames or ()):
                found = ", ".join(lines.fieldnames or ()) or "nothing"
                raise FvitError(
                    f"{source} has no column {' and no column '.join(sorted(missing))}: its first line names "
                    f"{found[:200]}, and is to name file and label"
                )
            for line in lines:
                file, label = line["file"], (line["label"] or "").strip()
                if not file or not label:
                    raise FvitError(f"{source}, line {lines.line_num} lacks a file or a label")
                key = file if Path(file).name == file else _absolute(folder / file)
                if known.setdefault(key, label) != label:
                    raise FvitError(f"{source}, line {lines.line_num} gives {file} a second label")
    except (OSError, ValueError, csv.Error) as error:
        raise FvitError(f"{source} cannot be read as CSV: {reason_of(error)}") from error
    return known


def short_lines(text: TextIO) -> Iterator[str]:
    """Raises csv.Error of a line that is too long."""
    number = 0
    while line := text.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise csv.Error(f"line {number} is longer than {LONGEST_LINE:,} characters")
        yield line


def _absolute(file: str | Path) -> str:
    """Without "..": a link is one name among others, and is not followed."""
    return os.path.abspath(file)  # noqa: PTH100 - Path.absolute keeps ".."


def _indices(labels: Sequence[str], source: str, names: Sequence[str]) -> array[int]:
    classes = {str(index): index for index in range(len(names))}
    classes |= {name: index for index, name in enumerate(names)}
    classes |= {name: SEVERAL for name, count in Counter(names).items() if count > 1}
    used = sorted(set(labels))
    if source == FOLDERS and len(used) == len(names) and not classes.keys() >= set(used):
        classes = {label: index for index, label in enumerate(used)}
    for label in used:
        if label not in classes:
            raise FvitError(_unknown(label, source, names, folders=len(used)))
        if classes[label] == SEVERAL:
            raise FvitError(f"several classes of this bundle are called '{label}': give their indices")
    return array("i", [classes[label] for label in labels])


def _unknown(label: str, source: str, names: Sequence[str], *, folders: int) -> str:
    said = f"is no class of this bundle ({', '.join(names[:3])}, …) and no index below {len(names)}"
    if source == FOLDERS:
        return (
            f"folder '{label}' {said}: rename it, give the folders of all {len(names)} classes "
            f"({folders} are there), or labels in a CSV"
        )
    return f"label '{label}' in {source} {said}"
