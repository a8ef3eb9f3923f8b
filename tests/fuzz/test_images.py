"""Whatever is handed over as an image: the 8-bit pixels that a person would expect, or one line."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from fvit.errors import FvitError
from fvit.runtime.decoding import FORMATS, MODES
from fvit.runtime.images import Picture, read_image
from tests.fuzz.trying import promptly, tried

SIZE = (16, 12)
MAX_PIXELS = 300_000

SIDES = st.integers(0, 20) | st.sampled_from([3, 12, 16, 400])


def read(image: Any) -> Picture | None:
    """The picture, which is one, or None where it is refused in one line."""
    try:
        with promptly():
            picture = read_image(image, size=SIZE, max_pixels=MAX_PIXELS)
    except FvitError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
        return None
    assert picture.pixels.shape == (3, *SIZE) and picture.pixels.dtype == np.uint8
    return picture


def arrays_of(kind: str) -> st.SearchStrategy[NDArray[Any]]:
    shapes = st.lists(st.integers(0, 20), max_size=4).map(tuple) | st.sampled_from(
        [(*SIZE, 3), (3, *SIZE), SIZE, (*SIZE, 4), (1, 3, *SIZE), (7, 400, 3), (3, 1, 1), (3, 0, 5)]
    )
    return shapes.flatmap(lambda shape: arrays.arrays(kind, shape, fill=arrays.from_dtype(np.dtype(kind))))


KINDS = ["u1", "i1", "u2", "i4", "i8", "f2", "f4", "f8", "?", "c8", ">f4", "U3", "M8[s]"]


@tried(50)
@given(st.sampled_from(KINDS).flatmap(arrays_of))
@example(np.zeros((3, *SIZE)) + np.nan)
@example(np.full((3, *SIZE), -0.0))
@example(np.full((3, *SIZE), 1 + 1e-16))
@example(np.zeros((*SIZE, 3), np.uint8)[::-1, ::-1])
@example(np.asfortranarray(np.arange(16 * 12 * 3, dtype=np.uint8).reshape(*SIZE, 3)))
def test_an_array_is_its_pixels_or_is_refused(array: NDArray[Any]) -> None:
    picture = read(array)
    bytes_of_rgb = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size > 0
    floats = array.dtype.kind == "f" and array.ndim == 3 and array.shape[0] == 3 and array.size > 0
    in_range = floats and bool(np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1)
    assert (picture is not None) == (bytes_of_rgb or in_range)
    if picture is not None and bytes_of_rgb and array.shape[:2] == SIZE:
        assert np.array_equal(picture.pixels, array.transpose(2, 0, 1))
    elif picture is not None and in_range and array.shape[1:] == SIZE:
        assert np.array_equal(picture.pixels, np.rint(array.astype(np.float64) * 255))


@st.composite
def pil_images(draw: st.DrawFn) -> Image.Image:
    size = (draw(SIDES), draw(SIDES)) if draw(st.booleans()) else SIZE[::-1]
    mode = draw(st.sampled_from([*sorted(MODES), "I", "F", "I;16", "LAB", "La", "RGBa"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    of_rgb = Image.fromarray(rng.integers(0, 256, (max(size[1], 1), max(size[0], 1), 3), np.uint8))
    if mode in ("LAB", "La", "RGBa", "I;16", "PA") or 0 in size:
        return Image.new(mode, size)
    image = of_rgb.convert(mode)
    if mode in ("RGBA", "LA") and draw(st.booleans()):
        image.putalpha(draw(st.integers(0, 255)))
    if draw(st.booleans()) and mode in ("L", "RGB", "P"):
        image.info["transparency"] = draw(st.sampled_from([0, 7, b"\x00\x80", (1, 2, 3), "x", -1, None]))
    return image


@tried(50)
@given(pil_images())
def test_an_image_of_pillow_is_what_pillow_shows_or_is_refused(image: Image.Image) -> None:
    picture = read(image)
    if 0 in image.size or image.mode not in MODES:
        assert picture is None
    elif picture is not None and image.size == SIZE[::-1]:
        expected = image.convert("RGBA" if image.has_transparency_data else "RGB")
        pixels = np.asarray(expected, np.float64).transpose(2, 0, 1)
        alpha = pixels[3:] / 255 if len(pixels) == 4 else np.ones((1, 1, 1))
        on_white = pixels[:3] * alpha + 255 * (1 - alpha)
        assert np.abs(picture.pixels - on_white).max() <= 1
    elif "transparency" not in image.info:
        assert picture is not None


OTHER_FORMATS = ["ICO", "TGA", "PCX", "JPEG2000", "PDF", "ICNS", "SGI", "DDS", "IM", "MSP", "XBM"]


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """What an encoder wrote, of a few pixels, and then something spoiled."""
    written = draw(st.sampled_from([*FORMATS, *FORMATS, *OTHER_FORMATS]))
    mode = draw(st.sampled_from(["RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "I", "F", "LA"]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    size = draw(st.sampled_from([(12, 16), (1, 1), (40, 3)]))
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    image = Image.new(mode, size, 1000) if mode == "I;16" else image.convert(mode)
    options: dict[str, Any] = {}
    if written in ("PNG", "JPEG", "WEBP", "TIFF") and draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9) | st.sampled_from([70000, "up"]))
        options["exif"] = exif
    if written in ("GIF", "WEBP", "PNG", "TIFF") and draw(st.booleans()):
        options |= {"save_all": True, "append_images": [image.copy()]}
    if written == "TIFF":
        options["compression"] = draw(st.sampled_from([None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits"]))
    buffer = io.BytesIO()
    try:
        image.save(buffer, written, **options)
    except Exception:  # this format has no such mode or option
        image.convert("RGB").save(buffer, written if written in FORMATS else "PNG")
    data = bytearray(buffer.getvalue())
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)) | st.integers(0, min(64, len(data))))
        spoils = draw(st.sampled_from(["cut", "flip", "insert", "zero", "most", "repeat"]))
        if spoils == "cut":
            del data[place:]
        elif spoils == "insert":
            data[place:place] = draw(st.binary(max_size=8))
        elif spoils == "repeat":
            data[place:place] = data[place : place + 200]
        elif place < len(data):
            data[place] = {"flip": data[place] ^ (1 << draw(st.integers(0, 7))), "zero": 0, "most": 255}[
                spoils
            ]
    return bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@tried(50)
@given(data=files() | st.binary(max_size=300))
@example(data=b"")
@example(data=b"GIF89a\xff\xff\xff\xff\x00\x00\x00")
@example(data=b"P6 99999999 99999999 255\n")
@example(data=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
def test_a_file_is_an_image_or_is_refused_in_one_line(data: bytes, folder: Path) -> None:
    file = folder / "file.png"
    file.write_bytes(data)
    picture = read(file)
    if picture is not None:
        assert Image.open(file).format in FORMATS


KEPT = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"],
    "WEBP": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB"],
    "GIF": ["1", "L", "P"],
    "PPM": ["1", "L", "RGB"],
    "JPEG": ["L", "RGB"],
}
"""Of which of Pillow's modes each format keeps every value, and JPEG nearly."""

OF_EXIF = ("PNG", "JPEG", "WEBP", "TIFF")

CLEAR = ("L", "P", "RGB", "I;16")
"""Modes of which PNG has one value that stands for nothing."""

UPRIGHT: dict[Any, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a),
}  # fmt: skip
"""From the rows and columns of a file to those that are shown, by EXIF's orientation."""


def image_of(mode: str, values: NDArray[Any], palette: NDArray[np.uint8]) -> Image.Image:
    if mode == "1":
        return Image.fromarray(values[..., 0] > 127)
    image = Image.frombytes(mode, values.shape[1::-1], values.tobytes())
    if mode == "P":
        image.putpalette(palette.tobytes())
    return image


def shown(
    mode: str, values: NDArray[Any], palette: NDArray[np.uint8], clear: NDArray[Any] | None
) -> NDArray[np.float64]:
    """What a person sees of such values on white, of which one may stand for nothing."""
    if mode == "P":
        colours: NDArray[Any] = palette[values[..., 0]]
    elif mode == "CMYK":
        colours = (255.0 - values[..., :3]) * (255.0 - values[..., 3:]) / 255
    elif mode.endswith("A"):
        colours = values[..., :-1]
    else:
        colours = {"1": 255.0 * (values > 127), "I;16": values / 257}.get(mode, values)
    alpha = values[..., -1:] / 255 if mode.endswith("A") else np.ones((1, 1, 1))
    if clear is not None:
        alpha = (values != clear).any(axis=-1, keepdims=True)
    on_white = colours * alpha + 255.0 * (1 - alpha)
    return np.broadcast_to(on_white, (*on_white.shape[:2], 3))


@st.composite
def drawings(draw: st.DrawFn, written: str, mode: str) -> tuple[bytes, NDArray[np.float64]]:
    """A file, and what a person sees of it, of the size that is certified."""
    turns = {"TIFF": (1, 8)}.get(written, (0, 9))  # libtiff writes no others
    orientation = draw(st.none() | st.integers(*turns)) if written in OF_EXIF else None
    rows, columns = SIZE[::-1] if orientation in (5, 6, 7, 8) else SIZE
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    values = rng.integers(0, 65536 if mode == "I;16" else 256, (rows, columns, Image.getmodebands(mode)))
    values = values.astype(np.uint16 if mode == "I;16" else np.uint8)
    palette = rng.integers(0, 256, (256, 3), np.uint8)

    options: dict[str, Any] = {"lossless": True} if written == "WEBP" else {}
    if written == "JPEG":
        options = {"quality": 100, "subsampling": 0}
    if written == "TIFF":
        options = {"compression": draw(st.sampled_from([None, "tiff_lzw", "tiff_deflate", "packbits"]))}
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    clear = values[3, 4] if written == "PNG" and mode in CLEAR and draw(st.booleans()) else None
    if clear is not None:
        options["transparency"] = tuple(clear.tolist()) if mode == "RGB" else int(clear[0])
    image = image_of(mode, values, palette)
    if written in ("GIF", "WEBP", "PNG", "TIFF") and clear is None and draw(st.booleans()):
        options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
    buffer = io.BytesIO()
    image.save(buffer, written, **options)
    upright = UPRIGHT.get(orientation, lambda stored: stored)
    return buffer.getvalue(), upright(shown(mode, values, palette, clear))


@pytest.mark.parametrize("written, mode", [(written, mode) for written in KEPT for mode in KEPT[written]])
@tried(10)
@given(choices=st.data())
def test_a_file_is_what_a_person_sees_of_it(
    written: str, mode: str, choices: st.DataObject, folder: Path
) -> None:
    data, seen = choices.draw(drawings(written, mode))
    file = folder / "file.png"
    file.write_bytes(data)
    picture = read(file)
    assert picture is not None and picture.resized_from is None
    # Rounded, or of JPEG nearly what was written.
    near = 8 if written == "JPEG" else 0.501
    assert np.abs(picture.pixels - seen.transpose(2, 0, 1)).max() <= near
