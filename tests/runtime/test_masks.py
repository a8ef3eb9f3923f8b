import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fvit.errors import FvitError
from fvit.runtime.images import read_image
from fvit.runtime.masks import BACKGROUND, OBJECT, VOID, fitted, read_mask, read_values


def saved(tmp_path: Path, values: NDArray[np.uint8] | list[list[int]], mode: str = "L") -> Path:
    image = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        image.putpalette([each for value in range(256) for each in (value, 0, 255 - value)])
    file = tmp_path / "mask.png"
    image.convert(mode).save(file)
    return file


def test_white_on_black_is_the_object(tmp_path: Path) -> None:
    for mode in ("L", "1"):
        assert read_mask(saved(tmp_path, [[0, 255], [255, 0]], mode), (2, 2)).tolist() == [[0, 1], [1, 0]]


def test_where_objects_are_numbered_255_is_void(tmp_path: Path) -> None:
    """As in PASCAL VOC, whose masks are palettes: the indices count, not the colours."""
    mask = read_mask(saved(tmp_path, [[0, 255], [15, 1]], "P"), (2, 2))
    assert mask.tolist() == [[BACKGROUND, VOID], [OBJECT, OBJECT]]
    assert read_mask(saved(tmp_path, [[0, 1], [1, 0]]), (2, 2)).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("size", "to"),
    [((8, 8), (16, 16)), ((24, 16), (8, 8)), ((16, 24), (8, 8)), ((10, 30), (16, 24)), ((64, 48), (32, 32))],
)
def test_a_mask_goes_where_its_image_goes(size: tuple[int, int], to: tuple[int, int]) -> None:
    """An image that is white on the object: behind read_image it is white there, and black elsewhere, but for
    the blend of the edge."""
    inside = np.zeros(size, np.bool_)
    inside[size[0] // 4 : size[0] // 4 * 3, size[1] // 8 : size[1] // 2] = True
    image = np.repeat(inside[..., None] * np.uint8(255), 3, axis=2).astype(np.uint8)
    shown = read_image(image, size=to).pixels[0]
    mask = fitted(np.where(inside, OBJECT, BACKGROUND).astype(np.int8), to)
    assert mask.shape == to and mask.dtype == np.int8
    assert (mask[shown > 230] == OBJECT).all() and (mask[shown < 25] == BACKGROUND).all()
    certain = (shown > 230) | (shown < 25)
    assert certain.mean() > 0.6 and (shown > 230).any() and (shown < 25).any()


def test_a_mask_of_the_right_size_is_not_touched() -> None:
    mask = np.random.default_rng(0).integers(-1, 2, (7, 5)).astype(np.int8)
    assert np.array_equal(fitted(mask, (7, 5)), mask)


def test_only_values_that_were_there_are_there_after_fitting() -> None:
    mask = np.random.default_rng(0).choice(np.array([VOID, OBJECT], np.int8), (50, 30))
    assert set(np.unique(fitted(mask, (224, 224)))) == {VOID, OBJECT}


def test_what_is_no_mask_is_refused_in_one_line(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "colour.png")
    Image.new("L", (2, 2)).save(tmp_path / "lossy.jpg")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand then nothing")
    with pytest.raises(FvitError, match=r"colour\.png is no mask: it holds values of Pillow's mode RGB"):
        read_values(tmp_path / "colour.png", (2, 2))
    for name in ("lossy.jpg", "broken.png", "absent.png"):
        with pytest.raises(FvitError, match=f"{name} cannot be read as a mask"):
            read_values(tmp_path / name, (2, 2))
    os.mkfifo(tmp_path / "pipe.png")
    for name, said in (("pipe.png", "cannot be read as a mask"), ("/dev/zero", "is a device")):
        with pytest.raises(FvitError, match=said):
            read_values(tmp_path / name, (2, 2))
    with pytest.raises(FvitError, match="is a mask of 2×2 pixels, and its image, turned upright, has 3×2"):
        read_values(saved(tmp_path, [[0, 1], [1, 0]]), (2, 3))
