"""Which batch, and which engine, is the fastest where this bundle runs: measured once, and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fvit.errors import FvitError, OutOfMemory

Found = TypeVar("Found", int, str)

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
WORTH = 1.03
"""A larger batch has to be this much faster: it costs memory, and a decision pauses less often."""

LONG = 10.0
"""Seconds after which a measurement goes on no further."""


def fastest_batch(seconds: Callable[[int], float]) -> int:
    """The smallest batch that is nearly as fast as any.

    seconds: the time of one copy at a batch size; raises OutOfMemory where a batch does not fit. Sizes grow
    until one does not fit, or two in turn gain nothing. Raises OutOfMemory where none fits.
    """
    rates: dict[int, float] = {}
    for size in SIZES:
        try:
            rates[size] = 1 / seconds(size)
        except OutOfMemory:
            if not rates:
                raise
            break
        if len(rates) > 2 and max(list(rates.values())[-2:]) < WORTH * max(list(rates.values())[:-2]):
            break
    return next(size for size, rate in rates.items() if WORTH * rate >= max(rates.values()))


def time_of_copy(run: Callable[[int], object], rows: int) -> float:
    """Seconds a copy where all devices together take so many rows at once, the best of three; run counts that
    many copies. Where so many rows take LONG, one time tells enough."""
    run(rows)  # allocates, chooses algorithms, may build an engine
    if (once := _seconds(run, rows)) > LONG:
        return once / rows
    copies = max(2 * rows, 64)
    return min(_seconds(run, copies) for _ in range(3)) / copies


def _seconds(run: Callable[[int], object], copies: int) -> float:
    start = time.perf_counter()
    run(copies)
    return time.perf_counter() - start


@cache
def code() -> str:
    """Stands for every line of this fvit: two checkouts may have one version."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(file for file in root.rglob("*") if file.suffix in (".py", ".cu")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def remembered(
    file: Path, key: str, find: Callable[[], Found], *, kind: type[Found], otherwise: str
) -> Found:
    """What `file` holds for key, or what `find` finds, which it holds from then on.

    kind: what `find` finds; a value of another type counts as none.
    Raises FvitError where the file cannot be written, with what to do otherwise.
    """
    known: dict[str, Found] = _held(file, kind)
    if key in known:
        return known[key]
    found = find()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        made = file.with_name(f"{file.name}.{os.getpid()}")  # another process may be here too
        made.write_text(json.dumps(known | {key: found}, indent=1) + "\n")
        made.replace(file)
    except OSError as error:
        raise FvitError(f"cannot write {file}: {error.strerror}; {otherwise}") from error
    return found


def _held(file: Path, kind: type) -> dict[str, Any]:
    """Those values of a file that are of this type; none where it is absent or damaged."""
    try:
        held = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    pairs = held.items() if isinstance(held, dict) else ()
    return {key: value for key, value in pairs if type(value) is kind}
