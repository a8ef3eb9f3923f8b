"""The grid pointing game (Böhle, Fritz & Schiele, CVPR 2021): four images of different classes in one. How
much of a class's explanation lies on its image?"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.record import Certificate
from fvit.evaluation.figures import Key, Row
from fvit.evaluation.measures import Explanation
from fvit.evaluation.measuring import mean_attribution
from fvit.evaluation.perturbing import quarters
from fvit.evaluation.rows import NONE
from fvit.runtime.masks import covered

Item = TypeVar("Item")
Floats = NDArray[np.float64]

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
    explained: Mapping[Explanation, int],
    plain: Floats,
    radii: Sequence[float],
) -> Row:
    """One mosaic's part of every figure.

    classes: of its quarters. explained: the classes that are explained; where one is none of the four there
    is no quarter to ask for. plain: [N], the plain explanation.
    """
    claim = certificate.attention
    rows, columns = certificate.size
    of_class: dict[int, Floats] = {}
    for index, place in zip(classes, quarters(rows, columns), strict=True):
        region = np.zeros((rows, columns), np.bool_)
        region[place] = True
        of_class[index] = covered(region, claim.grid)
    parts: dict[Key, tuple[float, float]] = {}
    attributions: dict[Explanation, Floats] = {"plain": plain, "smoothed": mean_attribution(claim)}
    for name, attribution in attributions.items():
        quarter = of_class.get(explained[name])
        share = NONE if quarter is None else (float(attribution @ quarter / attribution.sum()), 1)
        parts["explained", name] = (quarter is not None, 1)
        parts["in its quarter", name] = share
    quarter = of_class.get(explained["smoothed"])
    for radius in radii:
        inside = claim.map(radius).ravel() > 0
        share = NONE if quarter is None else (float(inside @ quarter), int(inside.sum()))
        parts["in its quarter", "certified in", radius] = share
    return parts
