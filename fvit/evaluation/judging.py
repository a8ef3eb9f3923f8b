"""What the plain and the smoothed model say of images: shares of the classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fvit.evaluation.perturbing import Pixels
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.plain import classify_plain

Floats = NDArray[np.float64]
Judge: TypeAlias = Callable[[Pixels], Floats]
"""[B,3,H,W] images of the bundle's size -> [B,C] shares, of which the largest is the class's."""

FEWEST = 4
"""Copies of an image: fewer hardly tell one class from another."""

ANY_ALPHA = 0.5
"""Of predict's test of the leading class, which nobody asks here: the leading class counts, and how often."""


def plain_shares(vit: FaithfulViT, pixels: Pixels) -> Floats:
    """The classifier's probabilities, with no copies drawn."""
    logits, _ = classify_plain(vit, pixels)
    return probabilities_of(logits)


def probabilities_of(logits: NDArray[np.float32]) -> Floats:
    """[B,C]."""
    return np.asarray(softmax(logits.astype(np.float64), axis=1))


def smoothed_shares(vit: FaithfulViT, pixels: Pixels, *, sigma: float, n: int, seed: int) -> Floats:
    """The share of n copies of each image that the classifier gives each class."""
    under_way = [
        vit.predicting(
            vit.read(each.transpose(1, 2, 0)), sigma=sigma, n=n, alpha=ANY_ALPHA, seed=seed
        )
        for each in pixels
    ]  # fmt: skip
    try:
        return np.stack([growing.result().counts for growing in under_way]) / n
    finally:
        for growing in under_way:
            growing.cancel()
