"""Images as data sets come: files, folders, patterns, lists of paths."""

from __future__ import annotations

import glob
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from fvit.errors import FvitError
from fvit.runtime.images import SPECIAL, SUFFIXES, reason_of

STDIN = "-"
"""What a list is called that comes from the standard input."""

LONGEST_PATH = 4096
"""Bytes of a path in a list: no system takes more."""

OnSkip = Callable[[str, str], Any]

Seen: TypeAlias = "set[tuple[int, int]]"
"""Folders, by device and inode: links may give one folder paths without end."""


def find_images(
    places: Iterable[str | Path],
    *,
    recursive: bool = False,
    is_result: Callable[[str], bool] = lambda file: False,
    on_skip: OnSkip = lambda file, reason: None,
) -> list[str]:
    """The paths of the image files among the places, in the order of the places and then of names.

    A place is a file, whatever it is called; a folder, which is searched for files with an image's suffix,
    and where `recursive` so is every folder in it; or, where nothing is called so, a pattern of files and
    folders (*, ?, [] and **). What has an image's suffix and is no regular file (a pipe, a device, a broken
    link) is left out, and so is what a search finds that is_result knows for a picture of an earlier run;
    on_skip is told which, and why. Raises FvitError where a place does not exist, cannot be read or holds no
    image.
    """
    found: list[str] = []
    results: list[str] = []
    for place in map(str, places):
        try:
            if _is_named(place):
                found.append(place)
                continue
            inside = list(dict.fromkeys(_searched(place, recursive=recursive, on_skip=on_skip)))
        except FileNotFoundError:
            raise FvitError(f"{place} does not exist") from None
        except (OSError, ValueError) as error:
            raise FvitError(f"{place} cannot be read: {reason_of(error)}") from error
        if not inside:
            deeper = "" if recursive else "; --recursive also searches the folders in it"
            raise FvitError(f"{place} holds no image ({', '.join(sorted(SUFFIXES))}){deeper}")
        before = len(found)
        for file in inside:
            (results if is_result(file) else found).append(file)
        if len(found) == before:
            raise FvitError(f"{place} holds no image but pictures of an earlier run")
    if results:
        on_skip(results[0], f"a picture of an earlier run, one of {len(results):,}")
    return found


def _is_named(place: str) -> bool:
    """Whether this is the path of a file, and no folder or pattern; raises FileNotFoundError where it is
    nothing."""
    if Path(place).is_dir():
        return False
    try:
        Path(place).lstat()
    except FileNotFoundError:
        if not glob.has_magic(place):
            raise
        return False
    return True


def _searched(place: str, *, recursive: bool, on_skip: OnSkip) -> Iterator[str]:
    """The images of a folder, or of what a pattern stands for."""
    seen: Seen = set()
    for match in [place] if Path(place).is_dir() else _matches(place):
        if Path(match).is_dir():
            yield from _inside(match, recursive=recursive, on_skip=on_skip, seen=seen)
        elif _named_as_image(match) and _is_regular(match, on_skip):
            yield match


def _matches(pattern: str) -> list[str]:
    """What a pattern stands for, in the order of names: as glob has it, but that ** comes to every folder
    once."""
    found = [pattern[: len(pattern) - len(pattern.lstrip("/"))]]
    for part in re.findall("[^/]+/*", pattern):
        found = list(_matching(found, part))
    return sorted(each or os.curdir for each in found)


def _matching(folders: list[str], part: str) -> Iterator[str]:
    """What a part of a pattern stands for in these folders, each of which ends with a slash, or is empty and
    the current one."""
    seen: Seen = set()
    for folder in folders:
        if part.rstrip("/") == "**":
            yield from _deeper(folder, seen)
        else:
            yield from _entries(folder, part)


def _deeper(top: str, seen: Seen) -> Iterator[str]:
    """A folder and those in it, but for hidden ones."""
    left = [top]
    while left:
        folder = left.pop()
        if _is_new(folder, seen):
            yield folder
            left += sorted(_entries(folder, "*/"), reverse=True)


def _entries(folder: str, part: str) -> Iterator[str]:
    return (folder + name for name in glob.iglob(part, root_dir=folder))  # noqa: PTH207 - of text, as given


def _inside(top: str, *, recursive: bool, on_skip: OnSkip, seen: Seen) -> Iterator[str]:
    """The images of a folder, then those of the folders in it."""
    left = [top]
    while left:
        folder = left.pop()
        if recursive and not _is_new(folder, seen):
            continue
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        deeper = {entry.path: None for entry in inside if recursive and _is_folder(entry)}
        for entry in inside:
            if _named_as_image(entry.name) and entry.path not in deeper and _is_regular(entry.path, on_skip):
                yield entry.path
        left += reversed(deeper)


def _is_new(folder: str, seen: Seen) -> bool:
    """Whether this folder was not seen yet; it is from now on."""
    status = Path(folder).stat()
    here = (status.st_dev, status.st_ino)
    new = here not in seen
    seen.add(here)
    return new


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Of a link that leads to itself the entry would raise an error.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


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
