"""A model that is a few lines of NumPy, so that a test can say what it does and runs of it can be killed."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fvit.errors import FvitError
from fvit.runtime.bundle import Bundle
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.host import HostCounter
from fvit.runtime.queue import CLOSED
from tests.runtime.test_bundle import MANIFEST

SIDE, GRID = 16, (4, 4)
LABELS = ("red", "green", "blue", "dark")
OF_COLOURS = MANIFEST.model_copy(
    update={
        "labels": LABELS, "image_size": (SIDE, SIDE), "classifier_size": (SIDE, SIDE), "grid": GRID,
        "explanation": "gradcam", "explained": "predicted",
    }
)  # fmt: skip

Floats = NDArray[np.float32]


class Colours:
    """Which of three channels is the brightest, or none of them: the class. The explanation is the channel's
    brightness in each of 4×4 tokens, that of the class it sees."""

    image_size, schedule, classes, tokens = (SIDE, SIDE), OF_COLOURS.schedule, len(LABELS), 16
    engine, precision = "numpy", "fp32"

    def __init__(self) -> None:
        self._closed = False

    def denoise(self, noisy: Floats, *, sigma: Floats) -> Floats:
        return np.clip(noisy, 0, 1)

    def classify(self, images: Floats) -> tuple[Floats, Floats]:
        if self._closed:
            raise FvitError(CLOSED)
        tokens = (
            images.astype(np.float64).reshape(len(images), 3, 4, 4, 4, 4).mean(axis=(3, 5)).reshape(-1, 3, 16)
        )
        means = tokens.mean(axis=2)
        logits = 40 * np.concatenate([means, np.full((len(images), 1), 0.3)], axis=1)
        seen = np.minimum(logits.argmax(axis=1), 2)
        relevance = tokens[np.arange(len(images)), seen] ** 2 + 1e-6
        attribution = relevance / relevance.sum(axis=1, keepdims=True)
        return logits.astype(np.float32), attribution.astype(np.float32)

    def __call__(self, noisy: Floats, *, sigma: Floats) -> tuple[Floats, Floats]:
        return self.classify(self.denoise(noisy, sigma=sigma))

    def close(self) -> None:
        self._closed = True


def of_colours() -> FaithfulViT:
    """Colours on two cores."""
    pipeline = Colours()
    counters = [HostCounter(pipeline, rows=16) for _ in range(2)]
    return FaithfulViT(Bundle(Path("b"), OF_COLOURS, "b" * 64), pipeline, counters, device="cpu")  # type: ignore[arg-type]


def image_of(colour: str, *, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A noisy image [H,W,3] with a bright square of 8×8 pixels in the colour's channel, and where that is."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
    row, column = draw.integers(0, 9, 2)
    square = (slice(row, row + 8), slice(column, column + 8))
    if colour != "dark":
        pixels[(*square, LABELS.index(colour))] = 255
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[square] = True
    return pixels, mask
