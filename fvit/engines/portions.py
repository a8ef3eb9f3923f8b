"""A batch of any size through a graph that takes so many rows at a time, on one CPU core or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = list[NDArray[Any]]


def in_portions(
    call: Callable[[dict[str, NDArray[Any]]], Arrays],
    feeds: Mapping[str, NDArray[Any]],
    *,
    portion: int | None,
    cores: Executor | None,
) -> Arrays:
    """What `call` gives for all rows of `feeds` [B, …], called with `portion` of them, or with all.

    The last portion is filled up with repeats, which are cut off again, so that what a row gives depends on
    it alone where portions do not mix rows. cores: share the portions; the calling thread does all unless
    told.
    """
    batch = len(next(iter(feeds.values())))
    portion = portion or batch
    starts = range(0, batch, portion)

    def part(first: int) -> Arrays:
        return call(
            {name: _filled(values[first : first + portion], portion) for name, values in feeds.items()}
        )

    pieces = list(cores.map(part, starts) if cores and len(starts) > 1 else map(part, starts))
    if len(pieces) == 1:
        return [values[:batch] for values in pieces[0]]
    return [np.concatenate(values)[:batch] for values in zip(*pieces, strict=True)]


def _filled(rows: NDArray[Any], portion: int) -> NDArray[Any]:
    return rows if len(rows) == portion else np.resize(rows, (portion, *rows.shape[1:]))
