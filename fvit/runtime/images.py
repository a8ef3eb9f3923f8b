"""Any image that a user hands over -> the 8-bit pixels that are certified, of the bundle's size."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fvit.errors import FvitError
from fvit.runtime.decoding import BYTES_A_PIXEL, FORMATS, MAX_PIXELS, check_size, checked, decoded

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any]"

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""

SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, eq=False)
class Picture:
    """The image that is certified.

    pixels: uint8 [3,H,W] of the bundle's size, resized and rounded where it was not; name: the path as
    given, "image" or "array"; sha256: of the file's bytes, or pixels_sha256 where there is no file;
    pixels_sha256: of the pixels as H×W×3 bytes; resized_from: (rows, columns) where the size was changed;
    animated: whether the file holds more frames than the one that is read.
    """

    pixels: NDArray[np.uint8]
    name: str
    sha256: str
    pixels_sha256: str
    resized_from: tuple[int, int] | None
    animated: bool = False


def read_image(image: ImageLike, *, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> Picture:
    """A path, PIL image, H×W×3 uint8 array or 3×H×W float array in [0,1] -> Picture of `size`.

    Paths and PIL images are turned upright as their EXIF orientation says; arrays have none. Grey is
    repeated, palettes are looked up, transparency is laid on white, 16-bit grey PNG is divided by 257. Of an
    animated file the first frame is read, of a PIL image the one that it stands at. Another size is scaled
    bicubically to cover `size`, cut at the centre and rounded to 8 bits once.
    Raises FvitError where it is no regular file or readable image, is empty, has more than max_pixels or
    much besides them, or cannot be brought to 8-bit RGB without a guess at what its values mean.
    """
    if isinstance(image, np.ndarray):
        name, digest, animated = "array", None, False
        planes = _planes_of_array(np.asarray(image), max_pixels=max_pixels)
    elif isinstance(image, Image.Image):
        name, digest = "image", None
        with _as_ours("the PIL image"):
            animated, planes = _planes(image, "the PIL image", max_pixels=max_pixels)
    else:
        name = _path(image)
        animated, planes, digest = _planes_of_file(name, max_pixels=max_pixels)
    return _picture(planes, size=size, name=name, digest=digest, animated=animated)


def read_encoded(data: bytes, *, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> Picture:
    """The bytes of an image file -> Picture of `size`, as read_image has it of the file.

    Nothing touches a disk. Raises FvitError as read_image does.
    """
    with _as_ours("the image"):
        animated, planes = _planes(io.BytesIO(data), "the image", max_pixels=max_pixels)
    digest = hashlib.sha256(data).hexdigest()
    return _picture(planes, size=size, name="image", digest=digest, animated=animated)


def _picture(
    planes: list[Image.Image], *, size: tuple[int, int], name: str, digest: str | None, animated: bool
) -> Picture:
    shape = (planes[0].height, planes[0].width)
    if shape != size:
        planes = [ImageOps.fit(plane.convert("F"), size[::-1], Image.Resampling.BICUBIC) for plane in planes]
    pixels = np.stack([_eight_bits(np.asarray(plane)) for plane in planes])
    own = hashlib.sha256(pixels.transpose(1, 2, 0).tobytes()).hexdigest()
    return Picture(pixels, name, digest or own, own, shape if shape != size else None, animated)


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    return values if values.dtype == np.uint8 else np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def _path(image: Any) -> str:
    try:
        name = os.fspath(image)
    except TypeError:
        name = None
    if not isinstance(name, str):
        raise FvitError(
            f"an object of type {type(image).__name__} is no image: give a path, a PIL image or an array"
        )
    return name


def _planes_of_file(name: str, *, max_pixels: int) -> tuple[bool, list[Image.Image], str]:
    """Whether there are more frames, 8-bit planes, SHA-256 of the bytes."""
    try:
        with open(name, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FvitError(f"{name} is {SPECIAL.get(stat.S_IFMT(status.st_mode), 'no file')}, no image")
            if status.st_size > (limit := BYTES_A_PIXEL * max_pixels):
                raise FvitError(
                    f"{name} has {status.st_size:,} bytes, more than {limit:,} for {max_pixels:,} pixels: "
                    "make it smaller, or allow more with --max-pixels"
                )
            with _as_ours(name):
                animated, planes = _planes(file, name, max_pixels=max_pixels)
            file.seek(0)
            return animated, planes, _sha256(file)
    except (OSError, ValueError) as error:
        raise FvitError(f"{name} cannot be read: {reason_of(error)}") from error


def _without_waiting(name: str, flags: int) -> int:
    """A pipe without a writer opens at once, so that it can be seen to be one."""
    return os.open(name, flags | os.O_NONBLOCK)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _planes_of_array(array: NDArray[Any], *, max_pixels: int) -> list[Image.Image]:
    """8-bit planes, or float planes of the same scale."""
    of_bytes = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
    of_floats = np.issubdtype(array.dtype, np.floating) and array.ndim == 3 and array.shape[0] == 3
    if not of_bytes and not of_floats:
        raise FvitError(
            f"an array of shape {array.shape} and type {array.dtype} is no image: "
            "give H×W×3 uint8 or 3×H×W float in [0, 1]"
        )
    rows, columns = array.shape[:2] if of_bytes else array.shape[1:]
    check_size(rows, columns, "the array", max_pixels=max_pixels)
    if of_bytes:
        return [Image.fromarray(np.ascontiguousarray(array[..., channel])) for channel in range(3)]
    if not bool(np.isfinite(array).all()) or array.min() < 0 or array.max() > 1:
        raise FvitError(f"float images must lie in [0, 1]; this one spans {array.min():g} to {array.max():g}")
    return [Image.fromarray((plane.astype(np.float64) * 255).astype(np.float32)) for plane in array]


def _planes(image: Image.Image | BinaryIO, name: str, *, max_pixels: int) -> tuple[bool, list[Image.Image]]:
    """Whether there are more frames, and the upright image's three 8-bit planes."""
    # No other frame holds what is opened here, so that it leaves the memory as soon as it is converted.
    if isinstance(image, Image.Image):
        animated = checked(image, name, max_pixels=max_pixels)
        image.load()
    else:
        animated, image = decoded(image, name, max_pixels=max_pixels)
    deep = image.mode == "I;16"
    # Not by ImageOps, which writes all metadata anew; a TIFF file's image was turned when it was decoded.
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is not None:
        image = image.transpose(turn)
    if deep:
        return animated, [_grey_of_sixteen_bits(image)] * 3
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, "white")
        opaque.paste(image, mask=image.getchannel("A"))
        image = opaque
    if image.mode in ("1", "L"):
        return animated, [image.convert("L")] * 3
    if image.mode != "RGB":
        image = image.convert("RGB")
    return animated, list(image.split())


def _grey_of_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if "transparency" in image.info:  # one value that stands for nothing
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


@contextmanager
def _as_ours(name: str) -> Iterator[None]:
    """Whatever a decoder raises becomes one line, and its warnings nothing: they are of an image's size,
    whose limit is max_pixels, and of broken metadata."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    except FvitError:
        raise
    except UnidentifiedImageError:
        raise FvitError(f"{name} is not an image of a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        raise FvitError(f"{name} has more pixels than Pillow decodes: make it smaller") from error
    except MemoryError as error:
        raise FvitError(f"{name} does not fit in memory: make it smaller") from error
    except Exception as error:  # decoders of damaged files fail in every way there is
        raise FvitError(f"{name} is a damaged image: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """What an error says, on one line; of the system's own, without its number and file."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__
