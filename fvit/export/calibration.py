"""The inputs that int8 ranges are measured on: noisy copies, and what the denoiser makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fvit.engines.base import open_engine
from fvit.export.precision import Feeds
from fvit.runtime.host import noisy_copies
from fvit.runtime.images import find_images, read_image
from fvit.runtime.schedule import Schedule

IMAGES = 64
LEVELS = (0.25, 0.12, 0.5, 1.0)
"""The σ that ranges have to hold for, taken in turn as far as the schedule knows them."""


def calibration_images(folder: Path | None, *, size: tuple[int, int]) -> NDArray[np.float32]:
    """[M,3,H,W] in [0,1]: the first IMAGES of a folder, or compositions of the demo's generator.

    Raises FvitError where the folder holds no image, or one that cannot be read.
    """
    if folder is not None:
        files = find_images([folder])[:IMAGES]
        return np.stack([read_image(file, size=size).pixels for file in files])
    from fvit.demo.data import compositions

    drawn = compositions(IMAGES, seed=5, split="train").images
    return np.stack([read_image(image, size=size).pixels for image in drawn])


def denoiser_feeds(images: NDArray[np.float32], schedule: Schedule, *, rows: int) -> list[Feeds]:
    """Noisy copies of the images for the denoiser, `rows` of them and one σ in each feed."""
    known = [s for s in LEVELS if schedule.sigmas[0] <= s <= schedule.sigmas[-1]] or [schedule.sigmas[-1]]
    images = np.resize(images, (-(-len(images) // rows) * rows, *images.shape[1:]))
    feeds: list[Feeds] = []
    for first in range(0, len(images), rows):
        sigma = known[first // rows % len(known)]
        copies = [
            noisy_copies(images[i], range(i, i + 1), sigma=sigma, seed=0) for i in range(first, first + rows)
        ]
        feeds.append(
            {
                "noisy": np.concatenate(copies),
                "sigma": np.asarray(sigma, np.float32),
                "timestep": np.asarray(schedule.timestep(sigma), np.float32),
            }
        )
    return feeds


def classifier_feeds(denoiser: Path, feeds: list[Feeds]) -> list[Feeds]:
    """What the denoiser graph makes of its feeds: the classifier's inputs."""
    engine = open_engine(denoiser, device="cpu")
    return [engine.run(each) for each in feeds]
