import gc
import hashlib
import io
import os
import socket
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, ImageFile, ImageOps, TiffImagePlugin

from fvit.errors import FvitError
from fvit.runtime import decoding
from fvit.runtime.decoding import FORMATS, MAX_PIXELS, METADATA
from fvit.runtime.images import read_encoded, read_image
from tests.fuzz.trying import promptly

# Pillow's warnings reach nobody.
pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
SIZE = (64, 64)
ORIENTATION = 0x0112


def _noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _smooth(rows: int, columns: int) -> Image.Image:
    return Image.fromarray(_noise(rows // 8, columns // 8, 3)).resize(
        (columns, rows), Image.Resampling.BICUBIC
    )


def _refusal(image: Any, **options: Any) -> str:
    with pytest.raises(FvitError) as caught:
        read_image(image, size=SIZE, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_path_pil_and_both_array_layouts_give_the_same_pixels(photo: Path) -> None:
    from_path = read_image(photo, size=SIZE)
    opened = Image.open(photo)
    eight_bit = np.asarray(opened)
    assert np.array_equal(from_path.pixels, eight_bit.transpose(2, 0, 1))
    assert from_path.pixels.dtype == np.uint8
    assert (from_path.resized_from, from_path.animated) == (None, False)
    for kind in (np.float16, np.float32, np.float64, np.dtype(">f4")):
        floats = (eight_bit.transpose(2, 0, 1) / 255).astype(kind)
        assert np.array_equal(read_image(floats, size=SIZE).pixels, from_path.pixels)
    for image in (opened, eight_bit):
        assert np.array_equal(read_image(image, size=SIZE).pixels, from_path.pixels)


@pytest.mark.parametrize("shape", [(90, 120), (200, 50), (40, 40)])
def test_they_do_so_when_resized_too(shape: tuple[int, int], tmp_path: Path) -> None:
    image = Image.fromarray(_noise(*shape, 3))
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    pictures = [
        read_image(each, size=SIZE)
        for each in (tmp_path / "a.png", image, array, array.transpose(2, 0, 1) / 255)
    ]
    assert len({picture.pixels_sha256 for picture in pictures}) == 1
    assert {picture.resized_from for picture in pictures} == {shape}


def test_read_only_and_scattered_arrays_are_read(photo: Path) -> None:
    array = np.asarray(Image.open(photo))
    expected = read_image(array, size=SIZE).pixels_sha256
    wide = np.repeat(array, 2, axis=1)
    for kind in (array, wide[:, ::2], np.asfortranarray(array), array.view(np.ma.MaskedArray)):
        kind.setflags(write=False)
        assert read_image(kind, size=SIZE).pixels_sha256 == expected
    floats = np.asfortranarray(array.transpose(2, 0, 1) / 255)
    assert read_image(floats, size=SIZE).pixels_sha256 == expected


def test_hashes_are_of_the_file_and_of_the_pixels(photo: Path) -> None:
    picture = read_image(str(photo), size=SIZE)
    pixels = np.asarray(Image.open(photo)).tobytes()
    assert picture.name == str(photo)
    assert picture.sha256 == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert picture.pixels_sha256 == hashlib.sha256(pixels).hexdigest()
    for name, image in (("image", Image.open(photo)), ("array", np.asarray(Image.open(photo)))):
        other = read_image(image, size=SIZE)
        assert (other.name, other.sha256, other.pixels_sha256) == (name, *[picture.pixels_sha256] * 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_and_pil_images_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    upright = _noise(64, 64, 3)
    across = (1, 0, 2)
    turns: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(across), 6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(across), 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for suffix in (".png", ".webp", ".tif"):
        file = tmp_path / f"a{suffix}"
        stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
        stored.save(file, exif=exif, lossless=True)
        opened = Image.open(file)
        for image in (file, opened):
            assert np.array_equal(read_image(image, size=SIZE).pixels, upright.transpose(2, 0, 1))
        # A caller's own image stays as it was; of TIFF files Pillow itself turns it.
        assert np.array_equal(np.asarray(opened), np.asarray(Image.open(file)))


def test_orientation_comes_before_resizing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    _smooth(80, 160).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", size=SIZE).resized_from == (160, 80)


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = _noise(64, 64)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png", size=SIZE).pixels, np.stack([grey] * 3))
    black_and_white = grey > 127
    Image.fromarray(black_and_white).save(tmp_path / "two.png")
    assert np.array_equal(read_image(tmp_path / "two.png", size=SIZE).pixels[1], 255 * black_and_white)


def test_sixteen_bits_of_a_png_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (64, 64)).astype(np.uint16)
    deep[0, :4] = 0, 128, 129, 65535
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for image in (tmp_path / "deep.png", Image.open(tmp_path / "deep.png")):
        pixels = read_image(image, size=SIZE).pixels
        assert np.array_equal(pixels, np.stack([np.rint(deep / 257)] * 3))
    # One value of sixteen bits may stand for nothing, which shows white.
    Image.fromarray(deep).save(tmp_path / "hole.png", transparency=int(deep[5, 5]))
    assert (read_image(tmp_path / "hole.png", size=SIZE).pixels[:, 5, 5] == 255).all()


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(_noise(64, 64, 3)).quantize(16)
    image.save(tmp_path / "palette.png")
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "palette.png", size=SIZE).pixels, expected)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = _noise(64, 64, 4)
    pixels[:16, :, 3], pixels[16:32, :, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    read = read_image(tmp_path / "alpha.png", size=SIZE).pixels
    colours, alpha = pixels[..., :3].transpose(2, 0, 1).astype(float), pixels[..., 3] / 255
    assert np.all(read[:, :16] == 255)
    assert np.array_equal(read[:, 16:32], colours[:, 16:32])
    assert np.abs(read - (alpha * colours + (1 - alpha) * 255)).max() <= 1
    indexed = Image.fromarray(pixels[..., :3]).quantize(16)
    indexed.save(tmp_path / "key.png", transparency=3)
    shown = read_image(tmp_path / "key.png", size=SIZE).pixels
    assert (shown[:, np.asarray(indexed) == 3] == 255).all()


def test_another_size_is_resized_and_said(tmp_path: Path) -> None:
    Image.new("RGB", (100, 80), (255, 0, 0)).save(tmp_path / "large.png")
    picture = read_image(tmp_path / "large.png", size=SIZE)
    assert picture.resized_from == (80, 100)
    assert picture.pixels.shape == (3, 64, 64)
    assert (picture.pixels == np.array([255, 0, 0], np.uint8)[:, None, None]).all()


def test_resizing_rounds_once() -> None:
    """As in real numbers, and not after each of the two directions."""
    image = _smooth(200, 160)
    planes = [np.asarray(plane, np.float32) for plane in image.split()]
    fitted = [ImageOps.fit(Image.fromarray(plane), (64, 48), Image.Resampling.BICUBIC) for plane in planes]
    exact = np.clip(np.stack([np.asarray(plane) for plane in fitted]), 0, 255)
    found = read_image(image, size=(48, 64)).pixels
    assert np.abs(found - exact).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "LAB"])
def test_values_whose_white_is_not_known_are_refused(mode: str) -> None:
    made = Image.new(mode, (64, 64))
    assert f"mode {mode}" in (message := _refusal(made))
    assert "scale it to 8-bit" in message


def test_grey_that_was_converted_to_sixteen_bits_is_refused() -> None:
    """It holds 0 to 255 of 65535, and would be all black."""
    assert "mode I;16" in _refusal(Image.fromarray(_noise(64, 64)).convert("I;16"))


@pytest.mark.parametrize("name", ["I.tif", "F.tif", "I;16.tif"])
def test_measurements_in_files_are_refused(name: str, tmp_path: Path) -> None:
    Image.new(name.removesuffix(".tif"), (64, 64)).save(tmp_path / name)
    assert "are not known" in _refusal(tmp_path / name)


def test_an_animation_is_read_at_its_first_frame_and_said_to_be_one(tmp_path: Path) -> None:
    frames = [Image.fromarray(_noise(64, 64, 3) // n) for n in (1, 2, 3)]
    for suffix in (".png", ".webp", ".tif", ".gif"):
        file = tmp_path / f"a{suffix}"
        frames[0].save(file, save_all=True, append_images=frames[1:], lossless=True)
        picture = read_image(file, size=SIZE)
        assert picture.animated
        first = Image.open(file).convert("RGB")
        assert np.array_equal(picture.pixels, np.asarray(first).transpose(2, 0, 1))
    standing = Image.open(tmp_path / "a.tif")
    standing.seek(2)
    assert np.array_equal(read_image(standing, size=SIZE).pixels, np.asarray(frames[2]).transpose(2, 0, 1))
    assert standing.tell() == 2


def test_the_frames_of_a_file_are_not_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would take a second for some thousands of pages, and four times as long for twice as many."""
    visited = []
    for kind in (TiffImagePlugin.TiffImageFile, GifImagePlugin.GifImageFile):

        def seek(image: Any, frame: int, *rest: Any, real: Any = kind._seek) -> None:
            visited.append(frame)
            real(image, frame, *rest)

        monkeypatch.setattr(kind, "_seek", seek)
    first = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    frames = b"GIF89a\1\0\1\0\x80\0\0\7\7\7\xff\xff\xff" + first * 50_000 + b";"
    for data, grey in ((_pages(4000), 9), (frames, 7)):
        visited.clear()
        picture = read_encoded(data, size=SIZE)
        assert picture.animated
        assert set(picture.pixels.ravel()) == {grey}
        assert 1 <= len(visited) <= 3 and max(visited) <= 1


def test_a_second_frame_that_is_damaged_is_said(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.gif")
    whole = (tmp_path / "a.gif").read_bytes()
    assert not read_image(tmp_path / "a.gif", size=SIZE).animated
    (tmp_path / "a.gif").write_bytes(whole[:-1] + b",\0")
    assert "a.gif is a damaged image" in _refusal(tmp_path / "a.gif")


def test_what_is_empty_is_refused() -> None:
    for empty in (Image.new("RGB", (0, 0)), np.zeros((0, 5, 3), np.uint8), np.zeros((3, 5, 0))):
        assert "is empty" in _refusal(empty)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(columns: int, rows: int, kind: tuple[int, int], *chunks: bytes) -> bytes:
    """Of a depth and a type of colours."""
    size = struct.pack(">IIBBBBB", columns, rows, *kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", size) + b"".join(chunks) + _chunk(b"IEND", b"")


def _header_of(columns: int, rows: int) -> bytes:
    """A PNG that says how large it is, and holds nothing."""
    return _png(columns, rows, (8, 2), _chunk(b"IDAT", b""))


Tag = tuple[int, int, int, int | bytes]
"""Its number, its type, how many values, and the value or where it does not fit, the bytes of all."""


def _directory(tags: list[Tag], *, at: int, following: int = 0) -> bytes:
    """A TIFF directory, and behind it what does not fit."""
    behind = at + 2 + 12 * len(tags) + 4
    entries, rest = b"", b""
    for tag, kind, count, value in sorted(tags, key=lambda tag: tag[0]):
        if isinstance(value, bytes):
            rest += value
            value = behind + len(rest) - len(value)
        entries += struct.pack("<HHII", tag, kind, count, value)
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", following) + rest


def _grey(columns: int, rows: int, *tags: Tag, at: int = 8, size: int = 0) -> list[Tag]:
    """The tags of a grey image in one strip, of which some may be others."""
    strip: list[Tag] = [(256, 4, 1, columns), (257, 4, 1, rows), (258, 3, 1, 8), (259, 3, 1, 1),
        (262, 3, 1, 1), (273, 4, 1, at), (277, 3, 1, 1), (278, 4, 1, rows),
        (279, 4, 1, size or columns * rows)]  # fmt: skip
    return [*(tag for tag in strip if tag[0] not in {other[0] for other in tags}), *tags]


def _tiff(pixels: bytes, tags: list[Tag]) -> bytes:
    place = 8 + len(pixels)
    return b"II*\0" + struct.pack("<I", place) + pixels + _directory(tags, at=place)


def _pages(count: int) -> bytes:
    """A TIFF file of pages, of which the first is dark and the others black."""
    size = len(_directory(_grey(8, 8), at=0)) + 64
    pages = [b"II*\0\x08\0\0\0"]
    for page in range(count):
        at = 8 + page * size
        tags, following = _grey(8, 8, at=at + size - 64), at + size if page < count - 1 else 0
        pages.append(_directory(tags, at=at, following=following) + bytes([0 if page else 9] * 64))
    return b"".join(pages)


@pytest.mark.parametrize("columns", [8_001, 12_000, 100_000])
def test_pixels_are_limited_before_they_are_decoded(columns: int, tmp_path: Path) -> None:
    """Also where Pillow would warn or refuse by itself."""
    (tmp_path / "large.png").write_bytes(_header_of(columns, 8_000))
    message = _refusal(tmp_path / "large.png")
    assert "pixels" in message
    assert "smaller" in message


def test_the_limit_is_the_callers(photo: Path) -> None:
    assert read_image(photo, size=SIZE, max_pixels=4096).resized_from is None
    opened = Image.open(photo)
    for image in (photo, opened, np.asarray(opened), np.zeros((3, 64, 64))):
        assert "64×64 pixels, more than 4,000" in _refusal(image, max_pixels=4000)


def test_a_file_without_end_is_not_read_to_its_end(photo: Path) -> None:
    with photo.open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    assert "bytes" in _refusal(photo)


def _rationals(count: int) -> bytes:
    return np.arange(2 * count, dtype="<u4").tobytes()


def _row_and_text() -> bytes:
    """Of 16 bits, in one row that is held three times, with text whose letters take four bytes each."""
    text = b"\0\0\0\0\0\xf0\x9f\x98\x80" + b"a" * (METADATA // 2 - 5000)
    pixels = zlib.compress(bytes(1 + 8 * MAX_PIXELS), 1)
    head = [_chunk(b"iTXt", name + text) for name in (b"a", b"b")]
    return _png(MAX_PIXELS, 1, (16, 6), *head, _chunk(b"IDAT", pixels))


def _strip_and_numbers() -> bytes:
    """Of 16 bits, in one strip, which is compressed to no less, with a tag of many small objects."""
    side = int(MAX_PIXELS**0.5)
    pixels, numbers = zlib.compress(bytes(8 * side * side), 0), METADATA // 16 - 1000
    return _tiff(pixels, _grey(side, side, (258, 3, 4, struct.pack("<4H", *[16] * 4)), (259, 3, 1, 8),
        (262, 3, 1, 2), (277, 3, 1, 4), (282, 5, numbers, _rationals(numbers)), (338, 3, 1, 2),
        size=len(pixels)))  # fmt: skip


def _turned_with_numbers() -> bytes:
    """The same where Pillow reads all tags of EXIF once it has the pixels."""
    side = int(MAX_PIXELS**0.5)
    pixels, numbers = zlib.compress(bytes(8 * side * side), 1), METADATA // 16 - 1000
    place = 8 + len(pixels)
    exif = _directory([(37500, 5, numbers, _rationals(numbers))], at=place)
    return _tiff(pixels + exif, _grey(side, side, (258, 3, 4, struct.pack("<4H", *[16] * 4)), (259, 3, 1, 8),
        (262, 3, 1, 2), (274, 3, 1, 6), (277, 3, 1, 4), (338, 3, 1, 2), (34665, 4, 1, place),
        size=len(pixels)))  # fmt: skip


def _riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _webp(image: Image.Image, **chunks: bytes) -> bytes:
    """With chunks behind its pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", method=0, quality=0)
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in image.size)
    pixels = buffer.getvalue()[20:]
    flags = bytes([32 * ("ICCP" in chunks) + 8 * ("EXIF" in chunks) + 4 * ("XMP" in chunks), 0, 0, 0])
    parts = [(name.encode().ljust(4), data) for name, data in chunks.items()]
    profile = [part for part in parts if part[0] == b"ICCP"]  # stands before them
    others = [part for part in parts if part[0] != b"ICCP"]
    return _riff((b"VP8X", flags + sides), *profile, (b"VP8 ", pixels), *others)


def _webp_as_of_noise() -> bytes:
    """Pillow holds a WebP file twice, whatever is in it."""
    side = int(MAX_PIXELS**0.5)
    return _webp(Image.new("RGB", (side, side)), NOTE=bytes(3 * MAX_PIXELS))


DEAREST = (_row_and_text, _strip_and_numbers, _turned_with_numbers, _webp_as_of_noise)


@pytest.mark.parametrize("made", DEAREST)
def test_memory_of_the_largest_image_stays_below_a_gigabyte(
    made: Callable[[], bytes], tmp_path: Path
) -> None:
    """The dearest files, in a process of its own; 240 MB are left for a bundle."""
    (tmp_path / "image").write_bytes(made())
    code = (
        "import sys; from pathlib import Path; from fvit.runtime.images import read_image; "
        "read_image(sys.argv[1], size=(64, 64)); "
        # ru_maxrss would count the process that this one was started from.
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "image"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 760e6


MUCH = 5 * METADATA


def _exif() -> bytes:
    return b"II*\0\x08\0\0\0" + _directory([(274, 3, 1, 1), (37500, 7, MUCH, bytes(MUCH))], at=8)


def _small_png(*, before: Sequence[bytes] = (), behind: Sequence[bytes] = ()) -> bytes:
    return _png(64, 64, (8, 0), *before, _chunk(b"IDAT", zlib.compress(bytes(64 * 65))), *behind)


def _small_jpeg(*segments: tuple[int, bytes]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (64, 64)).save(buffer, "JPEG")
    data = buffer.getvalue()
    more = (struct.pack(">BBH", 255, marker, len(held) + 2) + held for marker, held in segments)
    return data[:2] + b"".join(more) + data[2:]


def _small_gif(*, before: bytes = b"", behind: bytes = b"") -> bytes:
    head, frame = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff", b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    return head + before + frame + behind + frame + b";"


def _comment() -> bytes:
    return b"!\xfe" + (b"\xff" + bytes(255)) * (MUCH // 256) + b"\0"


BOMB = zlib.compress(b"\xf0\x9f\x98\x80" + bytes(1_000_000))
SMALL = Image.new("RGB", (64, 64))
LADEN: dict[str, Callable[[], bytes]] = {
    "PNG, EXIF": lambda: _small_png(before=[_chunk(b"eXIf", _exif())]),
    "PNG, EXIF at its end": lambda: _small_png(behind=[_chunk(b"eXIf", _exif())]),
    "PNG, text": lambda: _small_png(before=[_chunk(b"iTXt", b"a\0\0\0\0\0" + bytes(MUCH))]),
    "PNG, texts": lambda: _small_png(before=[_chunk(b"tEXt", b"a\0" + bytes(60_000))] * (MUCH // 60_000)),
    "PNG, profile": lambda: _small_png(before=[_chunk(b"iCCP", b"a\0\0" + bytes(MUCH))]),
    "PNG, unknown": lambda: _small_png(behind=[_chunk(b"noTe", bytes(60_000))] * (MUCH // 60_000)),
    "PNG, empty parts": lambda: _small_png(before=[_chunk(b"IDAT", b"")] * 50_000),
    "JPEG, segments": lambda: _small_jpeg(*[(0xE3, bytes(65_000))] * (MUCH // 65_000)),
    "JPEG, small segments": lambda: _small_jpeg(*[(0xE1, b"Exif\0\0a")] * 50_000),
    "WebP, EXIF": lambda: _webp(SMALL, EXIF=_exif()),
    "WebP, XMP": lambda: _webp(SMALL, XMP=bytes(MUCH)),
    "WebP, profile": lambda: _webp(SMALL, ICCP=bytes(MUCH)),
    "TIFF, profile": lambda: _tiff(bytes(64), _grey(8, 8, (34675, 7, MUCH, bytes(MUCH)))),
    "TIFF, orientations": lambda: _tiff(bytes(64), _grey(8, 8, (274, 3, MUCH // 2, bytes(MUCH)))),
    "TIFF, in EXIF": lambda: _tiff(
        bytes(64) + _directory([(37500, 7, MUCH, bytes(MUCH))], at=72), _grey(8, 8, (34665, 4, 1, 72))
    ),
    "GIF, comment": lambda: _small_gif(before=_comment()),
    "GIF, comment behind": lambda: _small_gif(behind=_comment()),
}


@pytest.mark.parametrize("kind", LADEN)
def test_what_a_small_image_carries_besides_its_pixels_is_limited_before_it_is_read(kind: str) -> None:
    data = LADEN[kind]()
    tracemalloc.start()
    try:
        with pytest.raises(FvitError, match="^the image holds too much besides its pixels"):
            read_encoded(data, size=SIZE, max_pixels=10**6)
        assert tracemalloc.get_traced_memory()[1] < 4 * METADATA
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["text", "WebP, as much as its pixels might be"])
def test_so_is_what_shows_only_when_it_is_read(kind: str) -> None:
    data = {
        "text": lambda: _small_png(before=[_chunk(b"iTXt", b"%d\0\1\0\0\0" % n + BOMB) for n in range(9)]),
        "WebP, as much as its pixels might be": lambda: _webp(SMALL, XMP=bytes(METADATA + 1)),
    }[kind]()
    assert len(data) < METADATA + 10_000
    with pytest.raises(FvitError, match="^the image holds too much besides its pixels"):
        read_encoded(data, size=SIZE)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_what_cameras_and_editors_add_is_no_hindrance(suffix: str, tmp_path: Path) -> None:
    image, exif = _smooth(64, 64), Image.Exif()
    exif[0x9286] = bytes(60_000)
    image.save(tmp_path / f"bare{suffix}")
    image.save(tmp_path / f"laden{suffix}", exif=exif, icc_profile=bytes(_noise(900_000)), xmp=b"x" * 60_000)
    bare, laden = (read_image(tmp_path / f"{name}{suffix}", size=SIZE) for name in ("bare", "laden"))
    assert laden.pixels_sha256 == bare.pixels_sha256
    assert (tmp_path / f"laden{suffix}").stat().st_size > 900_000


def test_pixels_that_are_not_compressed_are_no_hindrance_either() -> None:
    """The most bytes that a pixel has, in the parts that encoders make."""
    side, held = 1500, 8192
    rows = np.insert(_noise(side, 8 * side), 0, 0, axis=1).tobytes()
    pixels = zlib.compress(rows, 0)
    assert len(pixels) > METADATA
    parts = [_chunk(b"IDAT", pixels[at : at + held]) for at in range(0, len(pixels), held)]
    png = read_encoded(_png(side, side, (16, 6), *parts), size=SIZE, max_pixels=side * side)
    assert png.resized_from == (side, side)
    for suffix in ("bmp", "tiff", "ppm"):
        buffer = io.BytesIO()
        Image.fromarray(_noise(2 * side, 2 * side, 3)).save(buffer, suffix)
        assert read_encoded(buffer.getvalue(), size=SIZE).resized_from == (2 * side, 2 * side)


@pytest.mark.parametrize("kind", [4, 17])
def test_a_tile_may_be_larger_than_its_image_but_not_than_any(kind: int) -> None:
    """libtiff decodes it whole, also where Pillow takes its sides, of type 17, for none."""
    for side, said in ((128, None), (16_384, "16,384×16,384 pixels")):
        pixels = zlib.compress(bytes([9]) * side * side, 1)
        length: int | bytes = side if kind == 4 else struct.pack("<q", side)
        tags = _grey(64, 64, (259, 3, 1, 8), (322, kind, 1, length), (323, kind, 1, length), (324, 4, 1, 8),
            (325, 4, 1, len(pixels)))  # fmt: skip
        data = _tiff(pixels, [tag for tag in tags if tag[0] not in (273, 278, 279)])
        if kind == 4 and said is None:
            assert set(read_encoded(data, size=SIZE, max_pixels=4096).pixels.ravel()) == {9}
        else:
            with pytest.raises(FvitError, match=said if kind == 4 else "tag 322 is no whole number"):
                read_encoded(data, size=SIZE)


@pytest.mark.parametrize("compression", [34925, 50000])
def test_compressions_that_hold_what_they_decode_twice_have_half_as_large_strips(compression: int) -> None:
    for rows, said in ((4000, "a part of the image has 5,000×4,000 pixels"), (400, "damaged")):
        tags = _grey(5000, 4000, (259, 3, 1, compression), (278, 4, 1, rows), size=8)
        with pytest.raises(FvitError, match=said):
            read_encoded(_tiff(bytes(8), tags), size=SIZE)


def test_a_long_row_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would copy all that it has of it for every 64 KiB."""
    reads = []

    def read(source: Any, size: int = -1, real: Any = decoding._Source.read) -> bytes:
        reads.append(size)
        return bytes(real(source, size))

    monkeypatch.setattr(decoding._Source, "read", read)
    columns = 3_000_000
    for data in (_tiff(bytes(columns), _grey(columns, 1)), b"P5 %d 1 255\n" % columns + bytes(columns)):
        reads.clear()
        assert read_encoded(data, size=SIZE).resized_from == (1, columns)
        assert len(reads) < 80


@pytest.mark.parametrize("suffix", [suffixes[0] for suffixes in FORMATS.values()])
def test_an_image_leaves_the_memory_with_its_last_use(suffix: str, tmp_path: Path) -> None:
    """Not when Python next looks for what refers to itself: many images come one after another."""
    file = tmp_path / f"a{suffix}"
    _smooth(64, 64).save(file)
    data = file.read_bytes()
    gc.collect()
    gc.disable()
    try:
        for length in (len(data), len(data) * 2 // 3):
            file.write_bytes(data[:length])
            try:
                read_image(file, size=SIZE)
            except FvitError:
                assert length < len(data)
            assert not [each for each in gc.get_objects() if isinstance(each, ImageFile.ImageFile)]
    finally:
        gc.enable()


def test_what_is_no_image_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    assert "text.png is not an image of a known format" in _refusal(tmp_path / "text.png")
    assert "cannot be read: No such file" in _refusal(tmp_path / "absent.png")
    assert "cannot be read: embedded null" in _refusal("a\0b.png")
    assert "cannot be read: File name too long" in _refusal("a" * 300 + ".png")
    assert "type int is no image" in _refusal(7)
    assert "type bytes is no image" in _refusal(b"photo.png")
    closed = Image.open(io.BytesIO(_header_of(64, 64)))
    closed.close()
    assert "the PIL image is a damaged image" in _refusal(closed)


def test_programs_that_pillow_would_run_are_not_run(tmp_path: Path) -> None:
    """PostScript goes to Ghostscript, wherever it says that it is a picture."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(script)
    assert "not an image of a known format" in _refusal(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [suffixes[0] for suffixes in FORMATS.values()])
def test_a_truncated_file_is_refused_or_reads_as_the_whole(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    _smooth(64, 64).save(file)
    data, whole = file.read_bytes(), read_image(file, size=SIZE)
    refused = 0
    for length in np.linspace(1, len(data) - 1, 60).astype(int):
        file.write_bytes(data[:length])
        try:
            assert read_image(file, size=SIZE).pixels_sha256 == whole.pixels_sha256
        except FvitError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("suffix", [suffixes[0] for suffixes in FORMATS.values()])
def test_bytes_that_were_changed_never_end_in_a_traceback(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options: dict[str, Any] = {} if suffix in (".bmp", ".gif", ".ppm") else {"exif": exif}
    _smooth(64, 64).save(file, **options)
    data, random = np.frombuffer(file.read_bytes(), np.uint8), np.random.default_rng(0)
    for _ in range(100):
        changed = data.copy()
        reach = len(data) if random.random() < 0.5 else min(len(data), 200)
        changed[random.integers(0, reach, 5)] = random.integers(0, 256, 5)
        file.write_bytes(changed.tobytes())
        try:
            assert read_image(file, size=SIZE, max_pixels=10**6).pixels.shape == (3, 64, 64)
        except FvitError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((64, 64)),
        np.zeros((64, 64, 3), np.int32),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3)),
        np.full((3, 64, 64), 2.0),
        np.full((3, 64, 64), -0.1),
        np.full((3, 64, 64), np.nan),
        np.full((3, 64, 64), None),
    ],
)
def test_arrays_that_are_no_images_are_refused(array: NDArray[Any]) -> None:
    _refusal(array)


def _listen(file: Path) -> None:
    here = Path.cwd()
    os.chdir(file.parent)  # the name of a socket may have 108 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(file.name)
    os.chdir(here)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a socket": _listen,
    "No such file": lambda file: file.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_it_is_refused_without_waiting_where_it_is_named(kind: str, tmp_path: Path) -> None:
    SPECIAL[kind](tmp_path / "odd.png")
    message = _refusal(tmp_path / "odd.png")
    assert "odd.png" in message
    assert {"a folder": "Is a directory", "a socket": "No such device"}.get(kind, kind) in message


def _progressive(columns: int, rows: int, *, scans: int) -> bytes:
    """A JPEG that says that it is so large, and goes over its pixels so often."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 9).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    size, scan = data.index(b"\xff\xc2") + 5, data.index(b"\xff\xda")
    data = data[:size] + struct.pack(">HH", rows, columns) + data[size + 4 : -2]
    more = scans - data.count(b"\xff\xda")
    return data + data[scan : scan + 10] * more + b"\xff\xd9"


@pytest.mark.parametrize("columns, rows, scans", [(8000, 4000, 20), (800, 1000, 800), (64, 64, 1000)])
def test_scans_of_a_jpeg_go_over_no_more_pixels_than_twenty_of_the_largest(
    columns: int, rows: int, scans: int
) -> None:
    picture = read_encoded(_progressive(columns, rows, scans=scans), size=SIZE)
    assert picture.resized_from == (None if (rows, columns) == SIZE else (rows, columns))
    with pytest.raises(FvitError, match=f"^the image is a JPEG of more than {scans:,} scans"):
        read_encoded(_progressive(columns, rows, scans=scans + 1), size=SIZE)


def test_who_allows_more_pixels_allows_their_scans() -> None:
    data = _progressive(8000, 4000, scans=21)
    with pytest.raises(FvitError, match="scans"):
        read_encoded(data, size=SIZE)
    assert read_encoded(data, size=SIZE, max_pixels=2 * MAX_PIXELS).resized_from == (4000, 8000)


def _mpo(first: bytes, second: bytes) -> bytes:
    """Two JPEGs in one file, of which the first says so."""
    buffer = io.BytesIO()
    SMALL.save(buffer, "MPO", save_all=True, append_images=[SMALL])
    data = buffer.getvalue()
    at = data.index(b"\xff\xe2")
    index = data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
    return first[:2] + index + first[2:] + second


MANY_SCANS = _progressive(64, 64, scans=3000)
FEW_SCANS = _progressive(64, 64, scans=300)
LIKE_SCANS: dict[str, Callable[[], bytes]] = {
    "in a thumbnail": lambda: _small_jpeg(
        (0xE1, b"Exif\0\0II*\0\x08\0\0\0" + _directory([], at=8) + MANY_SCANS)
    ),
    "in an image behind": lambda: FEW_SCANS + MANY_SCANS,
    "in the second image of two": lambda: _mpo(FEW_SCANS, MANY_SCANS),
    "restarts": lambda: FEW_SCANS[:-2] + b"\xff\xd0\xda" * 10_000 + b"\xff\xd9",
    "pixels": lambda: FEW_SCANS[:-2] + b"\xff\0\xda" * 10_000 + b"\xff\xd9",
}


@pytest.mark.parametrize("kind", LIKE_SCANS)
def test_what_only_looks_like_a_scan_is_none(kind: str) -> None:
    picture = read_encoded(LIKE_SCANS[kind](), size=SIZE)
    assert picture.resized_from is None
    assert picture.animated == ("two" in kind)


@pytest.mark.parametrize(
    "kind", ["in the first image of two", "behind fill bytes", "behind what is cut short", "without an end"]
)
def test_what_hides_a_scan_hides_it_in_vain(kind: str) -> None:
    scan, end = b"\xff\xda\0\x08\1\1\0\0\0\1", b"\xff\xd9"
    data = {
        "in the first image of two": _mpo(MANY_SCANS, FEW_SCANS),
        "behind fill bytes": FEW_SCANS[:-2] + (b"\xff\xff\xff" + scan) * 1000 + end,
        "behind what is cut short": FEW_SCANS[:-2] + (b"\xff\xe3\0\0" + scan) * 1000 + end,
        "without an end": MANY_SCANS[:-2],
    }[kind]
    with pytest.raises(FvitError, match="more than 1,000 scans"):
        read_encoded(data, size=SIZE)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 64, 1000])
def test_markers_are_found_wherever_a_file_is_cut_for_reading(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _small_jpeg((0xE3, b"\xff\xda" * 50), (0xE4, b"")) + FEW_SCANS

    def kinds() -> list[int]:
        source = decoding._Source(io.BytesIO(data), "the image")
        source.allow(sys.maxsize)
        return list(decoding._markers(source))

    found = kinds()
    assert (found.count(decoding.SCAN), found.count(decoding.END)) == (301, 1)
    monkeypatch.setattr(decoding, "A_BLOCK", block)
    assert kinds() == found


def test_markers_between_scans_are_limited_too() -> None:
    data = FEW_SCANS[:-2] + b"\xff\xe3\0\2" * 50_000 + b"\xff\xd9"
    with pytest.raises(FvitError, match="^the image holds too much besides its pixels"):
        read_encoded(data, size=SIZE)


def test_fill_bytes_between_scans_are_limited_too() -> None:
    """libjpeg begins with all of them again whenever Pillow has more."""
    assert read_encoded(FEW_SCANS[:-2] + b"\xff" * 10_000 + b"\xff\xd9", size=SIZE).resized_from is None
    assert read_encoded(FEW_SCANS + b"\xff" * 200_000, size=SIZE).resized_from is None
    with pytest.raises(FvitError, match="^the image holds too much besides its pixels"):
        read_encoded(FEW_SCANS[:-2] + b"\xff" * 200_000 + b"\xff\xd9", size=SIZE)


def test_a_jpeg_in_a_tiff_has_half_as_many_scans() -> None:
    """Tiles may hold twice the pixels of any image."""

    def tiff(scans: int) -> bytes:
        held = _progressive(64, 64, scans=scans)
        return _tiff(held, _grey(64, 64, (259, 3, 1, 7), size=len(held)))

    assert read_encoded(tiff(10), size=SIZE).resized_from is None
    with pytest.raises(FvitError, match="damaged"):
        read_encoded(tiff(11), size=SIZE)


def _tiled(columns: int, rows: int, tile: tuple[int, int], *, held: bytes) -> bytes:
    """A TIFF file whose tiles are all the same bytes."""
    count = -(-columns // tile[0]) * -(-rows // tile[1])
    tiles: list[Tag] = [(tag, 4, count, struct.pack("<I", value) * count if count > 1 else value)
        for tag, value in ((324, 8), (325, len(held)))]  # fmt: skip
    tags = _grey(columns, rows, (259, 3, 1, 8), (322, 4, 1, tile[0]), (323, 4, 1, tile[1]), *tiles)
    return _tiff(held, [tag for tag in tags if tag[0] not in (273, 278, 279)])


def test_tiles_reach_beyond_their_image_by_no_more_than_the_largest_has() -> None:
    held = zlib.compress(bytes([9]) * 256 * 256, 9)
    assert set(read_encoded(_tiled(300, 700, (256, 256), held=held), size=SIZE).pixels.ravel()) == {9}
    with pytest.raises(FvitError, match="has 1,000 parts of 1,900,000×16 pixels, more than its size takes"):
        read_encoded(_tiled(1, 16_000, (1_900_000, 16), held=held), size=SIZE)


def test_strips_are_limited_in_their_number() -> None:
    tags = _grey(1, 1_000_000, (259, 3, 1, 8), (278, 4, 1, 1), size=8)
    with pytest.raises(FvitError, match="has 1,000,000 parts of 1×1 pixels"):
        read_encoded(_tiff(bytes(8), tags), size=SIZE)


def test_parts_that_are_the_same_bytes_are_limited_in_their_bytes() -> None:
    held = zlib.compress(bytes([9]) * 64, 9) + bytes(100_000)
    tags = _grey(8, 8 * 1000, (259, 3, 1, 8), (273, 4, 1000, struct.pack("<I", 8) * 1000), (278, 4, 1, 8),
        (279, 4, 1000, struct.pack("<I", len(held)) * 1000))  # fmt: skip
    with pytest.raises(FvitError, match="^the image holds too much besides its pixels"):
        read_encoded(_tiff(held, tags), size=SIZE)


def test_a_tag_of_the_layout_is_there_once() -> None:
    """libtiff takes the first, and Pillow the last."""
    tags = _grey(8, 8, (259, 3, 1, 8))
    with pytest.raises(FvitError, match="tag 278 is there twice"):
        read_encoded(_tiff(bytes(8), [*tags, (278, 4, 1, 8)]), size=SIZE)


PLAIN = [b"P1 8 64 ", b"P2 8 64 200 ", b"P3 8 64 200 "]


def _plain(head: bytes, *, between: bytes = b" ") -> bytes:
    """A plain PPM, with something between its values."""
    count = 8 * 64 * (3 if head.startswith(b"P3") else 1)
    values = _noise(count) % (2 if head.startswith(b"P1") else 201)
    return head + between.join(b"%d " % value for value in values.tolist()) + b"\n"


@pytest.mark.parametrize("head", PLAIN)
def test_comments_in_a_plain_ppm_are_no_values(head: bytes) -> None:
    bare = read_encoded(_plain(head), size=SIZE).pixels_sha256
    for between in (b" #7\n", b" # 1 2\r#\n\n", b"#" + b"0" * 100 + b"\r\n"):
        assert read_encoded(_plain(head, between=between), size=SIZE).pixels_sha256 == bare
    last = _plain(head) + b"# no end of line"
    assert read_encoded(last, size=SIZE).pixels_sha256 == bare


@pytest.mark.parametrize("head", PLAIN)
def test_a_plain_ppm_has_not_many_more_bytes_than_values(head: bytes) -> None:
    with pytest.raises(FvitError, match="^the image holds too much besides its pixels"):
        read_encoded(_plain(head) + b"#\n" * 1_000_000, size=SIZE)


def test_comments_in_a_plain_ppm_take_no_time_each() -> None:
    """Pillow would take a minute for these."""
    data = b"P2 1000 1000 255\n" + b"#\n" * 10_000_000
    with promptly(), pytest.raises(FvitError, match="not enough image data"):
        read_encoded(data, size=SIZE)


@pytest.mark.parametrize("head", [b"P3 2100 1001 255\n", b"P6 2100 1001 100\n", b"P6 2100 1001 1000\n"])
def test_what_is_decoded_slowly_may_have_fewer_pixels(head: bytes) -> None:
    """Of text, and of values that are no bytes, Pillow decodes a million pixels a second."""
    with pytest.raises(FvitError, match=r"2,100×1,001 pixels, more than 2,100,000 .* save it as PNG"):
        read_encoded(head, size=SIZE)


@pytest.mark.parametrize("head", [b"P6 64 64 200\n", b"P6 64 64 2000\n", b"P5 64 64 200\n"])
def test_a_ppm_of_another_white_is_scaled(head: bytes) -> None:
    bands, deep, white = (3 if head.startswith(b"P6") else 1), head.endswith(b" 2000\n"), int(head.split()[3])
    values = np.random.default_rng(0).integers(0, white + 1, (64, 64, bands))
    data = head + values.astype(">u2" if deep else "u1").tobytes()
    found = read_encoded(data + bytes(2 << 20), size=SIZE).pixels  # others may follow
    assert np.abs(found - (values * 255 / white).transpose(2, 0, 1)).max() <= 0.5


@pytest.mark.parametrize("offset", [1078, 1079])
def test_bmp_in_runs_is_read_wherever_its_pixels_begin(offset: int) -> None:
    """Its parts begin at even places of the file."""
    run, pixels, end = b"\1\2", b"\0\3\4\5\6", b"\0\0"
    rows = b""
    for _ in range(64):
        rows += run * 60 + run + pixels
        rows += bytes((offset + len(rows)) % 2) + end
    head = struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset)
    size = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 8, 1, len(rows), 0, 0, 256, 0)
    palette = b"".join(bytes([n, n, n, 0]) for n in range(256))
    data = (head + size + palette).ljust(offset, b"\0") + rows + b"\0\1"
    found = read_encoded(data, size=SIZE).pixels
    assert np.array_equal(found, np.broadcast_to(np.array([2] * 61 + [4, 5, 6], np.uint8), (3, 64, 64)))


@pytest.mark.parametrize("most", [10**12, 10**19])
@pytest.mark.parametrize("suffix", [suffixes[0] for suffixes in FORMATS.values()])
def test_no_limit_is_too_high_for_a_small_image(suffix: str, most: int, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    _smooth(64, 64).save(file)
    expected = read_image(file, size=SIZE).pixels_sha256
    assert read_image(file, size=SIZE, max_pixels=most).pixels_sha256 == expected
    assert read_encoded(file.read_bytes(), size=SIZE, max_pixels=most).pixels_sha256 == expected
