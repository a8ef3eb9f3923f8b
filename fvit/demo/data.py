"""Cluttered digits: the data set of the embedded model.

The recipe, one composition at a time, every choice drawn from one NumPy generator:

1. *Background.* A random colour plus smooth colour noise at three scales (grids of 3, 6 and 16
   cells, bicubically enlarged to 64x64), so that texture exists at the scale of a stroke too.
2. *Distractors.* Three to five fragments, each a 4x4 corner of the 8x8 bitmap of some other
   digit, enlarged like the digit itself, turned freely, in a colour of its own, half transparent.
3. *The digit.* A handwritten 8x8 bitmap (UCI, as scikit-learn carries it), enlarged to 38 to 52
   pixels, turned by up to 12 degrees, sheared, stretched and placed at random inside the image,
   in a colour whose luminance differs from the background's by at least 0.35.
4. *The mask.* The pixels where the digit's opacity is above one half.

The 1,797 source bitmaps are split once (seed 0): a fifth is held out, so held-out compositions
show handwriting that no training image contains.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvit.extras import require

SIZE = 64
LABELS = tuple(str(digit) for digit in range(10))
LUMINANCE = np.array([0.299, 0.587, 0.114])

Split = Literal["train", "held-out"]


@dataclass(frozen=True)
class Compositions:
    """images [M,64,64,3] uint8, labels [M] int64, masks [M,64,64] bool (the digit's pixels)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


def compositions(count: int, *, seed: int, split: Split) -> Compositions:
    """`count` compositions; the same (count, seed, split) gives the same pixels.

    Composition i depends on (seed, split, i) alone, so a longer set begins with a shorter one.
    Raises MissingExtra where scikit-learn is not installed.
    """
    bitmaps, classes = _source(split)
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    labels = np.empty(count, np.int64)
    masks = np.empty((count, SIZE, SIZE), np.bool_)
    for i in range(count):
        rng = np.random.default_rng([seed, 0 if split == "train" else 1, i])
        which = int(rng.integers(len(bitmaps)))
        images[i], masks[i] = _compose(rng, bitmaps, which)
        labels[i] = classes[which]
    return Compositions(images, labels, masks)


def tokens_on_mask(mask: NDArray[np.bool_], *, patch: int) -> NDArray[np.bool_]:
    """Which tokens touch the digit: mask [...,64,64] -> [...,(64/patch)**2] bool, row-major."""
    side = SIZE // patch
    cells = mask.reshape(*mask.shape[:-2], side, patch, side, patch)
    return cells.any(axis=(-3, -1)).reshape(*mask.shape[:-2], side * side)


@functools.cache
def _source(split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    datasets = require("sklearn.datasets", extra="export", purpose="the demo's digit bitmaps")
    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    cut = len(order) // 5
    chosen = order[cut:] if split == "train" else order[:cut]
    bitmaps = (digits.images[chosen] / 16.0).astype(np.float32)
    return bitmaps, digits.target[chosen].astype(np.int64)


def _compose(
    rng: np.random.Generator, bitmaps: NDArray[np.float32], which: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    canvas = _background(rng)
    ground = float(canvas.mean(axis=(0, 1)) @ LUMINANCE)

    scale = rng.uniform(38, 52) / 8
    size = 8 * scale
    centre = rng.uniform(size / 2, SIZE - size / 2, 2)
    opacity = _draw(
        bitmaps[which],
        centre=centre,
        scale=scale * rng.uniform(0.92, 1.08, 2),
        angle=np.deg2rad(rng.uniform(-12, 12)),
        shear=rng.uniform(-0.15, 0.15),
    )

    for _ in range(rng.integers(3, 6)):
        source = bitmaps[rng.integers(len(bitmaps))]
        row, column = rng.integers(0, 2, 2) * 4
        fragment = np.zeros((8, 8), np.float32)
        fragment[2:6, 2:6] = source[row : row + 4, column : column + 4]
        piece = _draw(
            fragment,
            centre=rng.uniform(0, SIZE, 2),
            scale=np.full(2, scale * rng.uniform(0.7, 1.0)),
            angle=rng.uniform(0, 2 * np.pi),
            shear=0.0,
        )
        veil = (0.5 * piece * (1 - opacity))[..., None]
        canvas = canvas * (1 - veil) + rng.uniform(0, 1, 3) * veil

    colour = rng.uniform(0, 1, 3)
    while abs(float(colour @ LUMINANCE) - ground) < 0.35:
        colour = rng.uniform(0, 1, 3)
    canvas = canvas * (1 - opacity[..., None]) + colour * opacity[..., None]
    return np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8), opacity > 0.5


def _background(rng: np.random.Generator) -> NDArray[np.float64]:
    canvas = np.broadcast_to(rng.uniform(0.1, 0.9, 3), (SIZE, SIZE, 3)).copy()
    for cells, strength in ((3, 0.10), (6, 0.06), (16, 0.04)):
        grid = rng.normal(0, strength, (cells, cells, 3))
        enlarge = _enlarging(cells)
        canvas += np.moveaxis(enlarge @ np.moveaxis(grid, 2, 0) @ enlarge.T, 0, 2)
    return np.clip(canvas, 0, 1)


@functools.cache
def _enlarging(cells: int) -> NDArray[np.float64]:
    """The matrix [64, cells] that enlarges a row of cells bicubically."""
    columns = [
        np.asarray(Image.fromarray(row[None].astype(np.float32)).resize((SIZE, 1), Image.Resampling.BICUBIC))[
            0
        ]
        for row in np.eye(cells)
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _draw(
    bitmap: NDArray[np.float32],
    *,
    centre: NDArray[np.float64],
    scale: NDArray[np.float64],
    angle: float,
    shear: float,
) -> NDArray[np.float64]:
    """Opacity [64,64] in [0,1] of an 8x8 bitmap under an affine map (centre in pixels, x then y)."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag(scale)
    back = np.linalg.inv(forward)
    # Pad by one empty cell so that strokes on the bitmap's edge fade out instead of being cut.
    padded = Image.fromarray(np.pad(bitmap, 1))
    offset = np.array([5.0, 5.0]) - back @ centre
    coefficients = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    drawn = padded.transform((SIZE, SIZE), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    # Steepen the soft ramp that enlargement leaves, so that strokes have edges.
    return np.clip((np.asarray(drawn, np.float64) - 0.25) / 0.4, 0, 1)
