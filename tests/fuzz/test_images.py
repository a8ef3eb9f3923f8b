"""Whatever is handed over as an image: the 8-bit pixels that a person would expect, or one line."""

import io
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
