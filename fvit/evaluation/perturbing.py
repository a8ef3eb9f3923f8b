"""Images with some of their tokens removed, and four images in one: 8-bit pixels in, 8-bit pixels out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from fvit.runtime.masks import tokens_of_pixels

Pixels = NDArray[np.uint8]
Fill = Literal["mean", "blur"]
FILLS: tuple[Fill, ...] = ("mean", "blur")


def filling(pixels: Pixels, fill: Fill, *, grid: tuple[int, int]) -> Pixels:
    """What is put in the place of removed tokens, [3,H,W]: of "mean" the image's mean colour; of "blur" the
    image behind a Gaussian whose standard deviation is a token's side, so that no detail of a token is left.
    """
    if fill == "mean":
        mean = np.rint(pixels.mean(axis=(1, 2), keepdims=True)).astype(np.uint8)
        return np.broadcast_to(mean, pixels.shape)
    sides = (pixels.shape[1] / grid[0], pixels.shape[2] / grid[1])
    blurred = gaussian_filter(pixels.astype(np.float64), sigma=(0, *sides))
    return np.rint(blurred).astype(np.uint8)


def without(
    pixels: Pixels, filled: Pixels, removed: Sequence[NDArray[np.int64]], *, grid: tuple[int, int]
) -> Pixels:
    """[B,3,H,W]: for each of B sets of tokens, the image [3,H,W] that has them replaced by `filled`."""
    tokens = tokens_of_pixels((pixels.shape[1], pixels.shape[2]), grid)
    count = grid[0] * grid[1]
    gone = np.zeros((len(removed), count), np.bool_)
    for row, each in zip(gone, removed, strict=True):
        row[each] = True
    return np.where(gone[:, tokens][:, None], filled, pixels)


def mosaic(four: Sequence[Pixels]) -> Pixels:
    """Four images [3,H,W], reduced to quarters, in one of the same size: in two rows, from the upper left."""
    whole = np.empty_like(four[0])
    for pixels, (rows, columns) in zip(four, quarters(whole.shape[1], whole.shape[2]), strict=True):
        size = (columns.stop - columns.start, rows.stop - rows.start)
        small = Image.fromarray(pixels.transpose(1, 2, 0)).resize(size, Image.Resampling.BICUBIC)
        whole[:, rows, columns] = np.asarray(small).transpose(2, 0, 1)
    return whole


def quarters(height: int, width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the upper left, upper right, lower left and lower right."""
    halves = [[slice(0, side // 2), slice(side // 2, side)] for side in (height, width)]
    return [(rows, columns) for rows in halves[0] for columns in halves[1]]
