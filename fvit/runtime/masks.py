"""Masks: where an image's object is, read from a file and brought to the picture's size as the image was."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fvit.errors import FvitError
from fvit.runtime.images import reason_of
from fvit.runtime.inputs import open_plain

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.int8]

OBJECT, BACKGROUND, VOID = 1, 0, -1
"""What a mask says of a pixel; what is void counts neither for nor against."""

FORMATS = {"PNG": (".png",), "BMP": (".bmp",), "TIFF": (".tif", ".tiff"), "GIF": (".gif",), "PPM": (".pgm",)}
"""Of what is read, as Pillow names it, and what such files are called: a JPEG's values are not those that
were drawn."""

SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)

WHITE = 255


def read_values(file: str | Path, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The values of a grey, bilevel or palette image of this shape, of a palette the indices.

    Raises FvitError where it cannot be read, is of another kind or of another shape.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, and of sizes: these are checked
            with open_plain(str(file)) as data, Image.open(data, formats=list(FORMATS)) as opened:
                check_shape((opened.height, opened.width), shape, name=str(file))
                if opened.mode not in ("1", "L", "P"):
                    raise FvitError(
                        f"{file} is no mask: it holds values of Pillow's mode {opened.mode}; make it an "
                        "image of 8-bit grey or a palette"
                    )
                return np.asarray(opened).astype(np.uint8) * (WHITE if opened.mode == "1" else 1)
    except FvitError:
        raise
    except Exception as error:  # decoders of damaged files fail in every way there is
        raise FvitError(f"{file} cannot be read as a mask: {reason_of(error)}") from error


def read_mask(file: str | Path, shape: tuple[int, int]) -> Mask:
    """A mask [H,W] of this shape from a file: 0 is background. 255 is the object where nothing else is there
    beside 0, and void where the file numbers its objects, as VOC's do. Raises FvitError as read_values."""
    values = read_values(file, shape)
    mask = np.where(values == 0, BACKGROUND, OBJECT).astype(np.int8)
    if ((values != 0) & (values != WHITE)).any():
        mask[values == WHITE] = VOID
    return mask


def masks_of(files: Sequence[str], *, images: Path, masks: Path) -> list[Path]:
    """The mask of each image file in the folder `images`: in the folder `masks` under the same name but for
    the suffix. Raises FvitError where an image has none, or `images` is no folder."""
    if not images.is_dir():
        raise FvitError(f"{images} is no folder, in which masks would have the names of its images: give one")
    there = {
        file.with_suffix(""): file for file in sorted(masks.rglob("*")) if file.suffix.lower() in SUFFIXES
    }
    wanted = [masks / Path(file).relative_to(images).with_suffix("") for file in files]
    for file, stem in zip(files, wanted, strict=True):
        if stem not in there:
            raise FvitError(f"{file} has no mask: make it {stem}.png, or leave the image out")
    return [there[stem] for stem in wanted]


def check_shape(found: tuple[int, int], shape: tuple[int, int], *, name: str) -> None:
    """Raise FvitError where a mask is not of its image's shape."""
    if found != shape:
        raise FvitError(
            f"{name} is a mask of {found[1]}×{found[0]} pixels, and its image, turned upright, has "
            f"{shape[1]}×{shape[0]}: give one of that size"
        )


def fitted(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask brought to `size` by the way of its image (read_image): scaled to cover it and cut at the
    centre. Each pixel takes the value that lies nearest."""
    if mask.shape == size:
        return mask
    shifted = Image.fromarray((mask - VOID).astype(np.uint8))
    placed = ImageOps.fit(shifted, size[::-1], Image.Resampling.NEAREST)
    return np.asarray(placed).astype(np.int8) + np.int8(VOID)


def tokens_of_pixels(size: tuple[int, int], grid: tuple[int, int]) -> Integers:
    """[H,W]: the token that the centre of each pixel lies in, counted along the rows of the grid."""
    (height, width), (rows, columns) = size, grid
    down = (np.arange(height) * 2 + 1) * rows // (2 * height)
    across = (np.arange(width) * 2 + 1) * columns // (2 * width)
    return down[:, None] * columns + across


def covered(region: NDArray[np.bool_], grid: tuple[int, int]) -> Floats:
    """[N]: the share of each token's pixels that lie in a region [H,W]."""
    tokens = tokens_of_pixels((region.shape[0], region.shape[1]), grid).ravel()
    count = grid[0] * grid[1]
    pixels = np.bincount(tokens, minlength=count)
    return np.bincount(tokens, weights=region.ravel(), minlength=count) / np.maximum(pixels, 1)
