"""An image file, which may be made to cost memory and time -> Pillow's image, decoded."""

from __future__ import annotations

import io
import os
import re
import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from PIL import Image, ImageFile, JpegImagePlugin, TiffImagePlugin

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

LENGTHS = frozenset({TiffImagePlugin.STRIPBYTECOUNTS, TiffImagePlugin.TILEBYTECOUNTS})
"""TIFF's tags of how many bytes each strip or tile has."""

WHOLE_NUMBERS = (3, 4, 16)
"""TIFF's types of them."""

REMEMBERING = ("lzma", "zstd")
"""TIFF's compressions that may hold all that they decode a second time."""

OVERLAP = 2
"""Tiles may reach so far beyond their image that they hold so many times the pixels of the largest."""

A_PART = 256
"""A strip or tile counts as so many pixels more: to begin with one takes as long."""

SCANS = 20
"""Scans of the largest JPEG, each of which goes over the whole image: encoders make 10, and of CMYK 18."""

# Of JPEG in TIFF libtiff counts them, and refuses this one; its tiles may hold more pixels than any image.
os.environ.setdefault("LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER", str(SCANS // OVERLAP + 1))

MOST_SCANS = 1000
"""The same of the smallest."""

MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
"""What JPEG files have between their parts, except what has no length: in compressed data 0 or a restart
follows 255."""

END, SCAN, FILL = 0xD9, 0xDA, 0xFF
"""JPEG's markers of an image's end and of a scan, and what may stand before a marker any number of times."""

A_FILL = bytes([FILL]) * (1 << 16)
"""More of it than encoders write: Pillow would copy all of it for every 64 KiB."""

A_BLOCK = 1 << 18
"""Bytes that are searched at once."""

SLOW = {"ppm": 6, "ppm_plain": 20, "bmp_rle": 4}
"""Decoders of Pillow's that are written in Python, a microsecond a pixel, and the most bytes a pixel that
encoders write for them."""

SLOW_PIXELS = 2_100_000
"""A frame of video's full size."""

COMMENT, LINE_END = re.compile(rb"#[^\r\n]*[\r\n]?"), re.compile(rb"[\r\n]")


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
    if image.tile and image.tile[0][0] in SLOW:
        _hold(image, name, source)

    # A row that is not compressed is decoded when it is there, and Pillow would copy it for every 64 KiB.
    if any(tile[0] == "raw" for tile in image.tile):
        image.decodermaxblock = max(image.decodermaxblock, 8 * image.width)
    # BMP and PPM are pixels to their end, of which Pillow may read one at a time.
    endless = image.format in ("BMP", "PPM")
    limit = sys.maxsize if endless else METADATA + BYTES_A_PIXEL * area
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        source.allow(limit)
        _check_scans(image, name, source, max_pixels=max_pixels)
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


def _hold(image: ImageFile.ImageFile, name: str, source: _Source) -> None:
    """Has in memory what Pillow reads a few bytes at a time, and without comments, for each of which it would
    copy all that it has read; raises FvitError of what still takes long."""
    if image.width * image.height > SLOW_PIXELS:
        raise FvitError(
            f"{name} has {image.width:,}×{image.height:,} pixels, more than {SLOW_PIXELS:,} of a kind that "
            "takes long to decode: save it as PNG"
        )
    (tile,) = image.tile
    most = METADATA // 8 + SLOW[tile[0]] * image.width * image.height
    source.allow(most)
    source.seek(tile.offset)
    # Behind the pixels of PPM may follow another picture.
    held = source.read(most) if tile[0] == "ppm" else source.read()
    if tile[0] == "ppm_plain":
        held = b"".join(COMMENT.sub(b"", lines) for lines in _lines(held))
    # Of BMP some parts begin at even places of the file.
    start = tile.offset % 2
    image.fp = io.BytesIO(bytes(start) + held)
    image.tile = [tile._replace(offset=start)]


def _lines(data: bytes) -> Iterator[bytes]:
    """Some whole lines after others: to change all at once takes a hundred bytes of memory a change."""
    at = 0
    while at < len(data):
        found = LINE_END.search(data, at + A_BLOCK)
        end = found.end() if found else len(data)
        yield data[at:end]
        at = end


def _check_scans(image: Image.Image, name: str, source: _Source, *, max_pixels: int) -> None:
    """Raises FvitError of a JPEG of many scans: a few bytes of one may have all pixels gone over again."""
    pixels = SCANS * max(MAX_PIXELS, max_pixels)
    most = min(MOST_SCANS, pixels // (image.width * image.height))
    scans = 0
    source.seek(0)
    for markers, kind in enumerate(_markers(source)):
        if kind == END and scans:  # of the image that is read; others may follow
            return
        scans += kind == SCAN
        if scans > most:
            raise FvitError(
                f"{name} is a JPEG of more than {most:,} scans, too many for its size: save it with fewer"
            )
        if kind == FILL or markers > METADATA // A_READ:
            raise _too_much(name)


def _markers(source: _Source) -> Iterator[int]:
    """Kinds of the markers in a JPEG file from here on, found as libjpeg finds them."""
    rest, at = b"", 0
    while block := source.read(A_BLOCK):
        data = rest + block
        # One whose length is not there yet is found with the next block.
        while found := MARKER.search(data, at, len(data) - 2):
            at = found.end()
            yield (kind := data[at - 1])
            if kind != END:
                at += max(2, int.from_bytes(data[at : at + 2], "big"))
        if A_FILL in data:
            yield FILL
        rest, at = data[max(at, len(data) - 3) :], max(at - len(data), 0)


def _check_tiff(image: TiffImagePlugin.TiffImageFile, name: str, file: _Source, *, max_pixels: int) -> None:
    """Raises FvitError of tiles or strips that take much memory or time: each is decoded whole, a tile
    however small its image, and all of them may be the same few bytes."""
    tags = image.tag_v2
    _check_directory(name, file, tags.offset)
    height, width = tags[TiffImagePlugin.IMAGELENGTH], tags[TiffImagePlugin.IMAGEWIDTH]
    if tiled := TiffImagePlugin.TILEWIDTH in tags:
        rows, columns = tags.get(TiffImagePlugin.TILELENGTH, 1), tags[TiffImagePlugin.TILEWIDTH]
    else:
        rows, columns = min(height, tags.get(TiffImagePlugin.ROWSPERSTRIP, height)), width
    most = max(MAX_PIXELS, max_pixels)
    halved = image.info.get("compression") in REMEMBERING
    check_size(rows, columns, f"a part of {name}", max_pixels=most // (2 if halved else 1))

    parts = -(-height // rows) * -(-width // columns)
    pixels = parts * rows * columns if tiled else height * width
    if pixels + parts * A_PART > OVERLAP * most:
        raise FvitError(
            f"{name} has {parts:,} parts of {columns:,}×{rows:,} pixels, more than its size takes: "
            "save it in strips of many rows"
        )
    _check_lengths(image, name, file)


def _check_directory(name: str, file: _Source, offset: int) -> None:
    """Raises FvitError where libtiff may take another number than Pillow, and the image be another."""
    seen = set()
    for tag, kind, count in _directory(file, offset):
        if tag not in LAYOUT | LENGTHS:
            continue
        if kind not in WHOLE_NUMBERS or (tag in LAYOUT and count != 1):
            raise FvitError(f"{name} is a damaged image: its tag {tag} is no whole number")
        if tag in seen:
            raise FvitError(f"{name} is a damaged image: its tag {tag} is there twice")
        seen.add(tag)


def _check_lengths(image: TiffImagePlugin.TiffImageFile, name: str, file: _Source) -> None:
    """Raises FvitError where more bytes are read than of any other image: parts may be the same long ones."""
    lengths = (min(each, file.size) for tag in LENGTHS for each in image.tag_v2.get(tag, ()))
    if sum(lengths) > METADATA + BYTES_A_PIXEL * image.width * image.height:
        raise _too_much(name)


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
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.allow(0)

    def allow(self, size: int, *, at_once: int = sys.maxsize) -> None:
        self._left, self._at_once = size, at_once

    def read(self, size: int = -1) -> bytes:
        """Raises FvitError where it is more than is allowed."""
        # Of a length that a file does not have, Python would look for memory first.
        wanted = self.size if size < 0 else size
        data = self._file.read(min(wanted, self.size, self._left + 1, self._at_once))
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
