"""The inputs that int8 ranges are measured on: noisy copies, and what the denoiser makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fvit.engines.opening import open_engine
from fvit.export.precision import Feeds
from fvit.runtime.images import read_image
from fvit.runtime.inputs import find_images
from fvit.runtime.noise import noisy_copies
from fvit.runtime.schedule import Schedule

IMAGES = 64
LEVELS = (0.25, 0.12, 0.5, 1.0)
"""The σ that ranges have to hold for, taken in turn as far as the schedule knows them."""

KEY = int.from_bytes(b"fvit calibration", "little")
"""Of the noise, which is none that a certificate is drawn from."""


def calibration_images(folder: Path | None, *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """[M,3,H,W]: the first IMAGES of a folder, or compositions of the demo's generator.

    Raises FvitError where the folder holds no image, or one that cannot be read.
    """
    if folder is not None:
        files = find_images([folder])[:IMAGES]
        return np.stack([read_image(file, size=size).pixels for file in files])
    from fvit.demo.data import compositions

    drawn = compositions(IMAGES, seed=5, split="train").images
    return np.stack([read_image(image, size=size).pixels for image in drawn])


def denoiser_feeds(images: NDArray[np.uint8], schedule: Schedule, *, rows: int) -> list[Feeds]:
    """One noisy copy of each image for the denoiser, `rows` of them in each feed."""
    known = [level for level in LEVELS if schedule.knows(level)] or [schedule.sigmas[-1]]
    images = np.resize(images, (-(-len(images) // rows) * rows, *images.shape[1:]))
    levels = np.resize(known, len(images))
    noisy = np.concatenate(
        [
            noisy_copies(pixels, range(i, i + 1), sigma=float(sigma), key=KEY)
            for i, (pixels, sigma) in enumerate(zip(images, levels, strict=True))
        ]
    )
    inputs = {"noisy": noisy, "sigma": levels, "timestep": schedule.timestep(levels)}
    return [
        {name: values[first : first + rows].astype(np.float32) for name, values in inputs.items()}
        for first in range(0, len(images), rows)
    ]


def classifier_feeds(denoiser: Path, feeds: list[Feeds]) -> list[Feeds]:
    """What the denoiser graph makes of its feeds: the classifier's inputs."""
    engine = open_engine(denoiser, device="cpu")
    return [engine.run(each) for each in feeds]
