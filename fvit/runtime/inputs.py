"""Images as data sets come: files, folders, patterns, lists of paths."""

from __future__ import annotations

import glob
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fvit.errors import FvitError
from fvit.runtime.images import SPECIAL, SUFFIXES, reason_of

STDIN = "-"
"""What a list is called that comes from the standard input."""

LONGEST_PATH = 4096
"""Bytes of a path in a list: no system takes more."""

OnSkip = Callable[[str, str], Any]


def find_images(
    places: Iterable[str | Path],
    *,
    recursive: bool = False,
    on_skip: OnSkip = lambda file, reason: None,
) -> list[str]:
    """The paths of the image files among the places, in the order of the places and then of names.

    A place is a file, whatever it is called; a folder, which is searched for files with an image's suffix,
    and where `recursive` so is every folder in it; or, where nothing is called so, a pattern of files and
    folders (*, ?, [] and **). What has an image's suffix and is no regular file (a pipe, a device, a broken
    link) is left out; on_skip is told which, and why. Raises FvitError where a place does not exist, cannot
    be read or holds no image.
    """
    found: list[str] = []
    for place in map(str, places):
        try:
            inside = list(dict.fromkeys(_images(place, recursive=recursive, on_skip=on_skip)))
        except FileNotFoundError:
            raise FvitError(f"{place} does not exist") from None
        except (OSError, ValueError) as error:
            raise FvitError(f"{place} cannot be read: {reason_of(error)}") from error
        if not inside:
            deeper = "" if recursive else "; --recursive also searches the folders in it"
            raise FvitError(f"{place} holds no image ({', '.join(sorted(SUFFIXES))}){deeper}")
        found += inside
    return found


def _images(place: str, *, recursive: bool, on_skip: OnSkip) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    if Path(place).is_dir():
        yield from _inside(place, recursive=recursive, on_skip=on_skip, seen=seen)
        return
    try:
        Path(place).lstat()
    except FileNotFoundError:
        if not glob.has_magic(place):
            raise
    else:
        yield place
        return
    for match in sorted(glob.iglob(place, recursive=True)):  # noqa: PTH207 - of text, as it was given
        if Path(match).is_dir():
            yield from _inside(match, recursive=recursive, on_skip=on_skip, seen=seen)
        elif _named_as_image(match) and _is_regular(match, on_skip):
            yield match


def _inside(folder: str, *, recursive: bool, on_skip: OnSkip, seen: set[tuple[int, int]]) -> Iterator[str]:
    """The images of a folder, then those of the folders in it."""
    if recursive:  # where a link leads back up, this ends
        status = Path(folder).stat()
        if (here := (status.st_dev, status.st_ino)) in seen:
            return
        seen.add(here)
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    deeper = {entry.path: None for entry in inside if recursive and entry.is_dir()}
    for entry in inside:
        if _named_as_image(entry.name) and entry.path not in deeper and _is_regular(entry.path, on_skip):
            yield entry.path
    for each in deeper:
        yield from _inside(each, recursive=recursive, on_skip=on_skip, seen=seen)


def _named_as_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _is_regular(file: str, on_skip: OnSkip) -> bool:
    try:
        mode = Path(file).stat().st_mode
    except OSError as error:
        on_skip(file, f"cannot be read: {reason_of(error)}")
        return False
    if not stat.S_ISREG(mode):
        on_skip(file, f"is {SPECIAL.get(stat.S_IFMT(mode), 'no file')}, no image")
    return stat.S_ISREG(mode)


def listed(file: str) -> Iterator[str]:
    """The paths that a list names: a file's, or the standard input's where it is called "-".

    One a line, or each ended by a NUL, as find -print0 writes them. Raises FvitError where the list cannot
    be read, is neither a regular file nor a pipe, or holds what is no path.
    """
    try:
        with _opened(file) as opened:
            for number, piece in enumerate(_pieces(opened), start=1):
                if len(piece) > LONGEST_PATH:
                    raise FvitError(f"{file} is no list of paths: entry {number} is longer than any")
                if piece:
                    yield os.fsdecode(piece)
    except OSError as error:
        raise FvitError(f"{file} cannot be read: {reason_of(error)}") from error


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == STDIN:
        if sys.stdin is None:
            raise FvitError("the list of images is to come from the standard input, which is closed")
        yield sys.stdin.buffer
        return
    with open_plain(file) as opened:
        yield opened


@contextmanager
def open_plain(file: str) -> Iterator[BinaryIO]:
    """A regular file or a pipe, opened. Raises FvitError where it is anything else, OSError."""
    # A pipe that nobody writes to opens, and ends, at once.
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
        mode = os.fstat(opened.fileno()).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise FvitError(f"{file} is {SPECIAL.get(stat.S_IFMT(mode), 'no file')}: give a file or a pipe")
        os.set_blocking(opened.fileno(), True)
        yield opened


def _pieces(opened: BinaryIO) -> Iterator[bytes]:
    rest, end = b"", b"\n"
    while block := opened.read(1 << 16):
        end = b"\0" if b"\0" in block else end
        *whole, rest = (rest + block).split(end)
        yield from (piece.removesuffix(b"\r") for piece in whole)
        if len(rest) > LONGEST_PATH:
            break
    yield rest.removesuffix(b"\r")
