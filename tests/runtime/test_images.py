from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvit.errors import FvitError
from fvit.runtime.images import find_images, read_image

SIZE = (64, 64)


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_path_pil_and_both_array_layouts_give_the_same_pixels(photo: Path) -> None:
    from_path = read_image(photo, size=SIZE)
    opened = Image.open(photo)
    eight_bit = np.asarray(opened)
    for image in (opened, eight_bit, eight_bit.transpose(2, 0, 1).astype(np.float64) / 255):
        assert np.allclose(read_image(image, size=SIZE).pixels, from_path.pixels, atol=1e-7)
    assert from_path.pixels.shape == (3, 64, 64)
    assert from_path.pixels.dtype == np.float32
    assert from_path.resized_from is None


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = _noise(64, 64)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    pixels = read_image(tmp_path / "grey.png", size=SIZE).pixels
    assert np.allclose(pixels, grey[None] / 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (64, 64)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.allclose(read_image(tmp_path / "deep.png", size=SIZE).pixels, deep[None] / 65535, atol=1e-6)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(_noise(64, 64, 3)).quantize(16)
    image.save(tmp_path / "palette.png")
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1) / 255
    assert np.allclose(read_image(tmp_path / "palette.png", size=SIZE).pixels, expected)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = _noise(64, 64, 4)
    pixels[:32, :, 3], pixels[32:, :, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    read = read_image(tmp_path / "alpha.png", size=SIZE).pixels
    assert np.all(read[:, :32] == 1)
    assert np.allclose(read[:, 32:], pixels[32:, :, :3].transpose(2, 0, 1) / 255)


def test_another_size_is_resized_and_said(tmp_path: Path) -> None:
    Image.new("RGB", (100, 80), (255, 0, 0)).save(tmp_path / "large.png")
    picture = read_image(tmp_path / "large.png", size=SIZE)
    assert picture.resized_from == (80, 100)
    assert picture.pixels.shape == (3, 64, 64)
    assert np.allclose(picture.pixels[0], 1)


def test_what_is_no_image_is_said_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(FvitError, match="text.png is not an image"):
        read_image(text, size=SIZE)
    with pytest.raises(FvitError, match="cannot be read"):
        read_image(tmp_path / "absent.png", size=SIZE)


def test_a_truncated_png_is_refused(photo: Path) -> None:
    photo.write_bytes(photo.read_bytes()[:2000])
    with pytest.raises(FvitError, match="damaged"):
        read_image(photo, size=SIZE)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((64, 64)),
        np.zeros((64, 64, 3), np.int32),
        np.full((3, 64, 64), 2.0),
        np.full((3, 64, 64), np.nan),
    ],
)
def test_arrays_that_are_no_images_are_refused(array: np.ndarray) -> None:
    with pytest.raises(FvitError):
        read_image(array, size=SIZE)


def test_a_folder_without_images_and_a_missing_place_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FvitError, match="holds no image"):
        find_images([tmp_path])
    with pytest.raises(FvitError, match="does not exist"):
        find_images([tmp_path / "absent"])
