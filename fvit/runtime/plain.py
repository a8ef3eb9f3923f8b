"""The classifier without smoothing: an image goes in as it is, neither noisy nor denoised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.host import Floats

ROWS = 16
"""Images that go in at once: on a GPU each call has its price, and all of them at once take memory."""


def classify_plain(vit: FaithfulViT, pixels: NDArray[np.uint8] | Floats) -> tuple[Floats, Floats]:
    """[B,3,H,W] of the bundle's size, 8-bit or in [0,1] -> logits [B,C], attribution [B,N]. A row depends on
    its own image alone."""
    outputs = [
        vit.pipeline.classify(_resized(pixels[first : first + ROWS], vit.bundle.manifest.classifier_size))
        for first in range(0, len(pixels), ROWS)
    ]
    logits, attribution = zip(*outputs, strict=True)
    return np.concatenate(logits), np.concatenate(attribution)


def _resized(pixels: NDArray[np.uint8] | Floats, size: tuple[int, int]) -> Floats:
    images = pixels.astype(np.float32)
    if pixels.dtype == np.uint8:
        images /= np.float32(255)
    if images.shape[2:] == size:
        return images
    planes = [
        np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BICUBIC))
        for plane in images.reshape(-1, *images.shape[2:])
    ]
    return np.clip(np.stack(planes), 0, 1).reshape(*images.shape[:2], *size)
