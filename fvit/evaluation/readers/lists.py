"""A CSV file: its first line names its columns, which are file and, where they are known, label and mask."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fvit.errors import FvitError
from fvit.evaluation.data import Data, Sample, of_file
from fvit.runtime.images import reason_of
from fvit.runtime.inputs import open_plain
from fvit.runtime.labels import labels_of
from fvit.runtime.masks import read_mask


def csv_list(source: Path, *, names: Sequence[str]) -> Data:
    """Images in the order of the lines. Paths are relative to the CSV's folder; a line may leave its mask
    empty. Labels are what labels_of takes. Raises FvitError where it cannot be read or a line lacks its
    file."""
    files, masks, labelled = _lines(source)
    labels: Sequence[int | None] = [None] * len(files)
    if labelled:
        labels = labels_of(files, str(source), names=names)
    return Data(
        "CSV",
        [
            Sample(file, of_file(file), label, partial(read_mask, mask) if mask else None)
            for file, label, mask in zip(files, labels, masks, strict=True)
        ],
    )


def _lines(source: Path) -> tuple[list[str], list[str], bool]:
    """Files, masks ("" for none), and whether there are labels."""
    files, masks = [], []
    try:
        with open_plain(str(source)) as opened:
            text = io.TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="")
            lines = csv.DictReader(text)
            columns = lines.fieldnames or []
            if "file" not in columns:
                raise FvitError(
                    f"{source} has no column file, but {', '.join(columns)[:200] or 'none'} in its first line"
                )
            for line in lines:
                if not line["file"]:
                    raise FvitError(f"{source}, line {lines.line_num} lacks a file")
                files.append(os.path.normpath(source.parent / line["file"]))
                mask = line.get("mask")
                masks.append(os.path.normpath(source.parent / mask) if mask else "")
    except (OSError, ValueError, csv.Error) as error:
        raise FvitError(f"{source} cannot be read as CSV: {reason_of(error)}") from error
    if not files:
        raise FvitError(f"{source} names no image")
    return files, masks, "label" in columns
