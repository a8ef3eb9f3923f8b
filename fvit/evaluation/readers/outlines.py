"""Regions as COCO writes them: polygons, and runs of pixels down the columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def filled_polygon(corners: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """[H,W]: the pixels whose centres lie inside a polygon. corners: [C,2], across and down from the image's
    upper left corner, in pixels; it is closed, and what it surrounds an even number of times is outside."""
    height, width = shape
    start, end = corners, np.roll(corners, -1, axis=0)
    inside = np.zeros(shape, np.bool_)
    across = np.arange(width) + 0.5
    top = max(0, int(np.floor(corners[:, 1].min())))
    for row in range(top, min(height, int(np.ceil(corners[:, 1].max())))):
        level = row + 0.5
        crossing = (start[:, 1] <= level) != (end[:, 1] <= level)
        one, other = start[crossing], end[crossing]
        places = one[:, 0] + (level - one[:, 1]) / (other[:, 1] - one[:, 1]) * (other[:, 0] - one[:, 0])
        inside[row] = np.searchsorted(np.sort(places), across) % 2 == 1
    return inside


def runs_of_text(text: str) -> list[int]:
    """The lengths of runs that COCO packs into text: six bits a character, five of a number's, lowest first,
    and one that says whether more follow; from the fourth number on, its difference from the last but one.

    Raises ValueError for what is no such text.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its counts are no run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its counts end within a number")
    return runs


def filled_runs(runs: Sequence[int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """[H,W]: runs of pixels down the columns, the first of them outside, then in turn. Raises ValueError
    where they are not as many pixels as the image has."""
    height, width = shape
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"its runs are not of {height * width} pixels")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T
