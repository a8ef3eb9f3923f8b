"""What an explanation is measured by, as pure functions of arrays (docs/evaluation.md).

Sources: [1] Chefer, Gur & Wolf, CVPR 2021 (perturbation and segmentation tests of ViTs); [2] Petsiuk, Das &
Saenko, BMVC 2018 (deletion and insertion); [3] Böhle, Fritz & Schiele, CVPR 2021 (grid pointing game).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.integrate import trapezoid

from fvit.runtime.masks import OBJECT, VOID, Mask

Floats = NDArray[np.float64]

TENTHS = 10
"""A curve has its points at 0, 1, … 9 tenths of the tokens removed, as in [1]."""

THRESHOLDS = np.arange(20) / 20
"""At which an explanation, scaled to 0 … 1, is cut into object and background."""


# --- perturbation ----------------------------------------------------------------------------------


def ranked(attribution: Floats, *, seed: int | Sequence[int]) -> NDArray[np.int64]:
    """[N] tokens, those with the largest attribution first. Ties fall at random by the seed: by index, the
    many tokens that some explanations give nothing would be removed row by row from the top."""
    any_order = np.random.default_rng(seed).permutation(len(attribution))
    return np.asarray(np.lexsort((any_order, -np.asarray(attribution))), np.int64)


def removed_counts(tokens: int) -> tuple[int, ...]:
    """How many of so many tokens are removed at 1, 2, … 9 tenths: rounded down."""
    return tuple(tenth * tokens // TENTHS for tenth in range(1, TENTHS))


def area_under(curve: Floats) -> Floats:
    """[..., 10] values at 0 … 9 tenths removed -> [...]: the area under the curve by the trapezoid rule, as
    [1] has it: 0.9 for a curve that is 1 throughout."""
    return np.asarray(trapezoid(np.asarray(curve, np.float64), dx=1 / TENTHS))


# --- segmentation ----------------------------------------------------------------------------------


def enlarged(attribution: Floats, size: tuple[int, int]) -> NDArray[np.float32]:
    """[rows, columns] -> [H,W], bilinear between the centres of the tokens, as [1] enlarges explanations."""
    plane = Image.fromarray(np.asarray(attribution, np.float32))
    return np.asarray(plane.resize(size[::-1], Image.Resampling.BILINEAR))


def scaled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """To 0 … 1 by the least and the largest value; all 0 where these are the same."""
    least, most = values.min(), values.max()
    return (values - least) / (most - least) if most > least else np.zeros_like(values)


@dataclass(frozen=True)
class Overlap:
    """Of an image's labelled pixels, how many are taken for the object (predicted), and how many of these
    are the object's (hit)."""

    predicted: int
    hit: int


OVERLAPS = ("pixel accuracy", "IoU of the object", "IoU of the background")


def overlap_parts(
    *, predicted: int, hit: int, labelled: int, on_object: int
) -> dict[str, tuple[float, float]]:
    """Pixel accuracy and both IoUs of one image, as numerators and denominators that are summed over images,
    as in [1]. Of `labelled` pixels `on_object` are the object's; the others as Overlap has them."""
    either = predicted + on_object - hit
    parts = ((labelled - either + hit, labelled), (hit, either), (labelled - either, labelled - hit))
    return dict(zip(OVERLAPS, parts, strict=True))


@dataclass(frozen=True)
class Segmented:
    """An explanation as a segmentation.

    at_mean: cut at its mean over all pixels, as in [1]; at: cut at each of THRESHOLDS. average_precision:
    average_precision_of_both.
    """

    at_mean: Overlap
    at: tuple[Overlap, ...]
    average_precision: float


def segmented(attribution: Floats, mask: Mask) -> Segmented:
    """An explanation [rows, columns] against a mask [H,W], of which at least one pixel is not void.

    It is enlarged and scaled to 0 … 1; pixels above a threshold count as the object.
    """
    values = scaled(enlarged(attribution, (mask.shape[0], mask.shape[1])))
    labelled = mask != VOID
    known, truth = values[labelled], mask[labelled] == OBJECT

    def cut(threshold: float) -> Overlap:
        predicted = known > threshold
        return Overlap(int(predicted.sum()), int((predicted & truth).sum()))

    return Segmented(
        at_mean=cut(values.mean(dtype=np.float64)),
        at=tuple(cut(threshold) for threshold in THRESHOLDS),
        average_precision=average_precision_of_both(known, truth),
    )


def average_precision_of_both(values: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Average precision over object and background together, as in [1]: each pixel is ranked twice, for the
    object by its value and for the background by one minus it."""
    return average_precision(np.concatenate([values, 1 - values]), np.concatenate([truth, ~truth]))


def average_precision(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Σ (R_i − R_{i−1})·P_i over the distinct scores from the highest down, with the precision P_i and the
    recall R_i of everything that scores as much or more; 0 where nothing is true."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    if hits[-1] == 0:
        return 0.0
    precision = hits[last] / (last + 1)
    return float(np.diff(hits[last], prepend=0) @ precision / hits[-1])
