"""An image file, which may be made to cost memory and time -> Pillow's image, decoded."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from PIL import Image, ImageFile, TiffImagePlugin

from fvit.errors import FvitError

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm",),
}
"""What is read, as Pillow names it, and what such files are called. Some of Pillow's other formats run other
programs, or hold images of another size than their headers say."""

MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"})
"""Pillow's modes of 8-bit values that have one meaning as RGB."""

MAX_PIXELS = 32_000_000
"""Reading takes 9 bytes a pixel of most files, and 20 of WebP and of 16 bits in one strip or row: so that it
stays below 750 MB whatever else is in a file."""

BYTES_A_PIXEL = 16
"""A file that is larger than so many times the pixels allowed is not read to its end for a hash; nor are more
bytes read for the pixels of one."""

WEBP_BYTES_A_PIXEL = 3
"""The same of WebP, a file of which is in memory twice while its pixels are: no photograph has more."""

METADATA = 8 << 20
"""Bytes of a file besides its pixels that are read. Pillow's objects of them may be 30 times as large."""

A_READ = 256
"""A read counts as so many bytes at least: Pillow would go through tiny parts for minutes."""

LAYOUT = frozenset({256, 257, 259, 277, 278, 284, 322, 323})
"""TIFF's tags of an image's size, compression, samples, strips, planes and tiles."""

WHOLE_NUMBERS = (3, 4, 16)
"""TIFF's types of them."""

REMEMBERING = ("lzma", "zstd")
"""TIFF's compressions that may hold all that they decode a second time."""

SLOW = frozenset({"ppm", "ppm_plain", "bmp_rle"})
"""Decoders of Pillow's that are written in Python, a microsecond a pixel."""

SLOW_PIXELS = 4_000_000


def checked(image: Image.Image, name: str, *, max_pixels: int) -> bool:
    """Whether there are more frames; raises FvitError of an image that need not be decoded."""
    check_size(image.height, image.width, name, max_pixels=max_pixels)
    # Grey of 16 bits that was made by conversion, and has no format, may use any part of its range.
    deep = image.mode == "I;16" and image.format == "PNG"
    if not deep and image.mode not in MODES:
        raise FvitError(
            f"{name} holds values of Pillow's mode {image.mode}, whose black and white are not known: "
            "scale it to 8-bit grey or RGB first"
        )
    # To count the frames Pillow would go through all of them.
    return bool(getattr(image, "is_animated", False))


def decoded(stream: BinaryIO, name: str, *, max_pixels: int) -> tuple[bool, Image.Image]:
    """Whether there are more frames, and the first one in memory."""
    source = _Source(stream, name)
    # What Pillow reads to open a file is metadata; of WebP it is everything.
    source.allow(METADATA)
    if source.read(12)[8:] == b"WEBP":
        source.allow(METADATA + WEBP_BYTES_A_PIXEL * max_pixels)
    image = Image.open(cast(BinaryIO, source), formats=list(FORMATS))
    # A GIF's second frame is found behind the first, whose bytes are read in small parts.
    area = min(image.width * image.height, max_pixels)
    source.allow(METADATA + 4 * area)
    animated = checked(image, name, max_pixels=max_pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image, name, source, max_pixels=max_pixels)
    _check_metadata(image, name)
    if any(tile[0] in SLOW for tile in image.tile):
        check_size(image.height, image.width, name, max_pixels=min(max_pixels, SLOW_PIXELS))

    # A row that is not compressed is decoded when it is there, and Pillow would copy it for every 64 KiB.
    if any(tile[0] == "raw" for tile in image.tile):
        image.decodermaxblock = max(image.decodermaxblock, 8 * image.width)
    # BMP and PPM are pixels to their end, of which Pillow may read one at a time.
    endless = image.format in ("BMP", "PPM")
    limit = sys.maxsize if endless else METADATA + BYTES_A_PIXEL * area
    source.allow(limit, at_once=image.decodermaxblock)
    _load(image, source)
    _check_metadata(image, name)
    return animated, image


def _load(image: ImageFile.ImageFile, source: _Source) -> None:
    """Decodes the pixels, and then allows for what is behind them."""

    def load_end() -> None:
        source.allow(METADATA // 2)  # of which Pillow makes the largest objects
        type(image).load_end(image)

    image.load_end = load_end  # type: ignore[method-assign]
    try:
        image.load()
    finally:
        del image.load_end  # by which the image refers to itself, and would stay in memory


def _check_metadata(image: Image.Image, name: str) -> None:
    """Raises FvitError of too much that was compressed, or came with the whole of a WebP file."""
    if sum(len(value) for value in image.info.values() if isinstance(value, str | bytes)) > METADATA:
        raise _too_much(name)


def _check_tiff(image: TiffImagePlugin.TiffImageFile, name: str, file: _Source, *, max_pixels: int) -> None:
    """Raises FvitError of a tile or strip that takes much memory: each is decoded whole, a tile however
    small its image."""
    tags = image.tag_v2
    for tag, kind, count in _directory(file, tags.offset):
        # Where Pillow passes over a number, libtiff may take it, and the image be another than Pillow says.
        if tag in LAYOUT and (kind not in WHOLE_NUMBERS or count != 1):
            raise FvitError(f"{name} is a damaged image: its tag {tag} is no whole number")
    rows, columns = tags[TiffImagePlugin.IMAGELENGTH], tags[TiffImagePlugin.IMAGEWIDTH]
    if TiffImagePlugin.TILEWIDTH in tags:
        rows, columns = tags.get(TiffImagePlugin.TILELENGTH, 1), tags[TiffImagePlugin.TILEWIDTH]
    else:
        rows = min(rows, tags.get(TiffImagePlugin.ROWSPERSTRIP, rows))
    most = max(MAX_PIXELS, max_pixels) // (2 if image.info.get("compression") in REMEMBERING else 1)
    check_size(rows, columns, f"a part of {name}", max_pixels=most)


def _directory(file: _Source, offset: int) -> Iterator[tuple[int, int, int]]:
    """Tags of a TIFF file, the types of their values, and how many there are, as libtiff reads them."""
    file.seek(0)
    head = file.read(4)
    order = "<" if head.startswith(b"II") else ">"
    number, entry = ("Q", "HHQ8x") if 43 in head[2:] else ("H", "HHL4x")
    file.seek(offset)
    (entries,) = struct.unpack(order + number, file.read(struct.calcsize(order + number)))
    return struct.iter_unpack(order + entry, file.read(entries * struct.calcsize(order + entry)))


class _Source:
    """A file as Pillow reads it, which says how much of it may be read, and how much at once."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self.allow(0)

    def allow(self, size: int, *, at_once: int = sys.maxsize) -> None:
        self._left, self._at_once = size, at_once

    def read(self, size: int = -1) -> bytes:
        """Raises FvitError where it is more than is allowed."""
        wanted = self._left + 1 if size < 0 else min(size, self._left + 1)
        data = self._file.read(min(wanted, self._at_once))
        self._left -= max(len(data), A_READ)
        if self._left < 0:
            raise _too_much(self._name)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _too_much(name: str) -> FvitError:
    return FvitError(f"{name} holds too much besides its pixels: save it without its metadata")


def check_size(rows: int, columns: int, name: str, *, max_pixels: int) -> None:
    if rows == 0 or columns == 0:
        raise FvitError(f"{name} is empty: it has {rows} rows and {columns} columns")
    if rows * columns > max_pixels:
        raise FvitError(
            f"{name} has {columns:,}×{rows:,} pixels, more than {max_pixels:,}: "
            "make it smaller, or allow more with --max-pixels"
        )
