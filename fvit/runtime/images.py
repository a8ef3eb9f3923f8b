"""Any image that a user hands over -> one float array in [0,1], of the bundle's size."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fvit.errors import FvitError

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any]"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})


@dataclass(frozen=True, eq=False)
class Picture:
    """pixels [3,H,W] float32 in [0,1]; name: the path, or "array"; sha256: of the file's bytes, or
    of the pixels where there is no file; resized_from: (rows, columns) where the size was changed."""

    pixels: NDArray[np.float32]
    name: str
    sha256: str
    resized_from: tuple[int, int] | None


def read_image(image: ImageLike, *, size: tuple[int, int]) -> Picture:
    """A path, PIL image, H×W×3 uint8 array or 3×H×W float array in [0,1] -> Picture of `size`.

    Another size is scaled bicubically to cover `size`, then cut at the centre. Grey is repeated,
    palettes are looked up, transparency is laid on white, 16-bit values are scaled.
    Raises FvitError where it is no readable image.
    """
    if isinstance(image, np.ndarray):
        name, (opened, digest) = "array", _from_array(image)
    elif isinstance(image, Image.Image):
        name, opened, digest = "image", image, None
    else:
        name = os.fspath(image)
        opened, digest = _from_file(Path(name))
    if isinstance(opened, Image.Image):
        opened = _pixels(opened)
    resized = None
    if opened.shape[1:] != size:
        resized = (int(opened.shape[1]), int(opened.shape[2]))
        opened = _fit(opened, size)
    opened = np.ascontiguousarray(opened, np.float32)
    return Picture(opened, name, digest or hashlib.sha256(opened.tobytes()).hexdigest(), resized)


def find_images(places: list[Path]) -> list[Path]:
    """The image files among the places, folders searched one level deep, in the order of names.

    Raises FvitError where a place does not exist or a folder holds no image.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise FvitError(f"{place} holds no image ({', '.join(sorted(SUFFIXES))})")
            found.extend(inside)
        elif place.exists():
            found.append(place)
        else:
            raise FvitError(f"{place} does not exist")
    return found


def _from_file(path: Path) -> tuple[Image.Image, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FvitError(f"{path} cannot be read: {error.strerror}") from error
    try:
        opened = Image.open(BytesIO(data))
        opened.load()
    except UnidentifiedImageError:
        raise FvitError(f"{path} is not an image that Pillow can read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FvitError(f"{path} is a damaged image: {error}") from error
    return ImageOps.exif_transpose(opened), hashlib.sha256(data).hexdigest()


def _from_array(array: NDArray[Any]) -> tuple[Image.Image | NDArray[np.float32], None]:
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return Image.fromarray(array), None
    if np.issubdtype(array.dtype, np.floating) and array.ndim == 3 and array.shape[0] == 3:
        if not bool(np.isfinite(array).all()) or array.min() < 0 or array.max() > 1:
            raise FvitError(
                f"float images must lie in [0, 1]; this one spans {array.min():g} to {array.max():g}"
            )
        return array.astype(np.float32), None
    raise FvitError(
        f"an array of shape {array.shape} and type {array.dtype} is no image: "
        "give H×W×3 uint8 or 3×H×W float in [0, 1]"
    )


def _pixels(image: Image.Image) -> NDArray[np.float32]:
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit grey; Pillow's own conversion to RGB would clip it at 255.
        grey = np.asarray(image, np.float32) / (65535.0 if image.mode.startswith("I") else 1.0)
        return np.repeat(np.clip(grey, 0, 1)[None], 3, axis=0)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / np.float32(255)


def _fit(pixels: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    planes = [
        ImageOps.fit(Image.fromarray(plane), (size[1], size[0]), Image.Resampling.BICUBIC) for plane in pixels
    ]
    return np.clip(np.stack([np.asarray(plane) for plane in planes]), 0, 1)
