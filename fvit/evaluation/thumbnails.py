"""One small strip an image: the image, its first noisy copy, and that copy denoised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvit.certificates.record import Certificate
from fvit.errors import FvitError
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.images import Picture
from fvit.runtime.noise import noisy_copies, philox_key
from fvit.runtime.pictures import written_whole

FOLDER = "thumbnails"

SIDE = 64
"""Pixels of a panel's longer side, at most."""

QUALITY = 70


def write_thumbnail(vit: FaithfulViT, picture: Picture, certificate: Certificate, *, folder: Path) -> None:
    """Write thumbnails/SHA-256 of the pixels.webp in a folder, whole or not at all; raises FvitError where
    that fails."""
    key = philox_key(picture.pixels_sha256, size=certificate.size, seed=certificate.seed)
    noisy = noisy_copies(picture.pixels, range(1), sigma=certificate.sigma, key=key)
    denoised = vit.pipeline.denoise(noisy, sigma=np.array([certificate.sigma], np.float32))
    rows, columns = certificate.size
    scale = min(1.0, SIDE / max(rows, columns))
    width, height = round(columns * scale), round(rows * scale)
    strip = Image.new("RGB", (3 * width, height))
    for place, pixels in enumerate((picture.pixels / np.float32(255), noisy[0], denoised[0])):
        strip.paste(_image(pixels).resize((width, height), Image.Resampling.BICUBIC), (place * width, 0))
    try:
        (folder / FOLDER).mkdir(exist_ok=True)
        with written_whole(folder / FOLDER / f"{picture.pixels_sha256}.webp") as part:
            strip.save(part, format="webp", quality=QUALITY)
    except OSError as error:
        raise FvitError(f"cannot write a thumbnail to {folder}: {error.strerror}") from error


def _image(pixels: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
