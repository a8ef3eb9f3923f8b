"""The grid pointing game (Böhle, Fritz & Schiele, CVPR 2021): four images of different classes in one. How
much
of a class's explanation lies on its image?"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.record import Certificate
from fvit.evaluation.figures import Row
from fvit.evaluation.measuring import mean_attribution
from fvit.evaluation.metrics import covered
from fvit.evaluation.perturbing import quarters
from fvit.evaluation.rows import NONE

Item = TypeVar("Item")
Floats = NDArray[np.float64]

OF_NO_CLASS = ("attention", "rollout")
"""Explanations that are the same whatever class is to be explained."""

FOUR = 4


def fours(items: Iterable[tuple[Item, int]]) -> Iterator[list[tuple[Item, int]]]:
    """Items with their classes -> groups of four classes, each item in one at most: as soon as four classes
    wait, the first item of each."""
    waiting: dict[int, deque[Item]] = {}
    for item, index in items:
        waiting.setdefault(index, deque()).append(item)
        if len(waiting) == FOUR:
            yield [(queue.popleft(), each) for each, queue in waiting.items()]
            waiting = {each: queue for each, queue in waiting.items() if queue}


def mosaic_row(
    classes: Sequence[int],
    certificate: Certificate,
    *,
    plain_index: int,
    plain_attribution: Floats,
    radii: Sequence[float],
) -> Row:
    """One mosaic's part of every figure.

    classes: of its quarters. Explained is the class that the model sees in the mosaic: where it is none of
    the four there is no quarter to ask for. plain_index, plain_attribution [N]: what the plain classifier
    says.
    """
    claim = certificate.attention
    rows, columns = certificate.size
    regions = np.zeros((FOUR, rows, columns), np.bool_)
    for region, place in zip(regions, quarters(rows, columns), strict=True):
        region[place] = True
    quarter = {index: covered(region, claim.grid) for index, region in zip(classes, regions, strict=True)}
    inside = {"plain": quarter.get(plain_index), "smoothed": quarter.get(certificate.class_.index)}
    shares = {"plain": plain_attribution, "smoothed": mean_attribution(claim)}
    parts: dict[tuple[str | float, ...], tuple[float, float]] = {}
    for name, attribution in shares.items():
        of = inside[name]
        parts["explained", name] = (of is not None, 1)
        parts["in its quarter", name] = (
            NONE if of is None else (float(attribution @ of / attribution.sum()), 1)
        )
    of = inside["smoothed"]
    for radius in radii:
        sides = claim.map(radius).ravel() > 0
        count = int(sides.sum()) if of is not None else 0
        parts["in its quarter", "certified in", radius] = NONE if of is None else (float(sides @ of), count)
    return parts
