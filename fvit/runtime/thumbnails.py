"""What a report shows of an image beside its record, small: a strip of the image, its first noisy copy and
that copy denoised; and the plain explanation, a pixel a token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvit.certificates.record import Certificate
from fvit.errors import FvitError
from fvit.runtime.panels import Panels
from fvit.runtime.pictures import written_whole

FOLDER = "thumbnails"

SIDE = 96
"""Pixels of a panel's longer side, at most."""

QUALITY = 70


def write_thumbnail(panels: Panels, certificate: Certificate, *, folder: Path) -> None:
    """Write to thumbnails/ in a folder two files called by SHA-256 of the pixels, each whole or not at all: a
    WebP, the strip, and a PNG, the classifier's explanation of the image as it is, its largest token white.
    Raises FvitError where that fails."""
    rows, columns = certificate.size
    scale = min(1.0, SIDE / max(rows, columns))
    width, height = round(columns * scale), round(rows * scale)
    strip = Image.new("RGB", (3 * width, height))
    for place, pixels in enumerate((panels.pixels, panels.noisy, panels.denoised)):
        strip.paste(_image(pixels).resize((width, height), Image.Resampling.BICUBIC), (place * width, 0))
    tokens = panels.plain.reshape(certificate.attention.grid)
    plain = Image.fromarray(np.rint(255 * tokens / max(float(tokens.max()), 1e-12)).astype(np.uint8))
    file = folder / FOLDER / panels.picture.pixels_sha256
    try:
        file.parent.mkdir(exist_ok=True)
        with written_whole(file.with_suffix(".png")) as part:
            plain.save(part, format="png")
        with written_whole(file.with_suffix(".webp")) as part:
            strip.save(part, format="webp", quality=QUALITY)
    except OSError as error:
        raise FvitError(f"cannot write a thumbnail to {folder}: {error.strerror}") from error


def _image(pixels: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
