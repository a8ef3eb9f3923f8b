import numpy as np
import pytest
from numpy.typing import NDArray

from fvit.evaluation.perturbing import filling, mosaic, without

GRID = (2, 2)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, 4, 4), np.uint8)


def test_only_what_is_removed_changes(pixels: NDArray[np.uint8]) -> None:
    filled = np.zeros_like(pixels)
    sets = [np.array([], np.int64), np.array([1]), np.array([0, 3]), np.arange(4)]
    none, one, two, every = without(pixels, filled, sets, grid=GRID)
    assert np.array_equal(none, pixels)
    assert not one[:, :2, 2:].any() and np.array_equal(one[:, 2:], pixels[:, 2:])
    assert np.array_equal(one[:, :2, :2], pixels[:, :2, :2])
    assert not two[:, :2, :2].any() and not two[:, 2:, 2:].any()
    assert np.array_equal(two[:, 2:, :2], pixels[:, 2:, :2])
    assert not every.any()


def test_the_mean_is_the_image_s_colour() -> None:
    pixels = np.zeros((3, 2, 2), np.uint8)
    pixels[0] = [[0, 10], [20, 32]]  # mean 15.5, which rounds to even
    pixels[2] = 200
    filled = filling(pixels, "mean", grid=(2, 2))
    assert filled.shape == pixels.shape and filled.dtype == np.uint8
    assert filled[:, 0, 0].tolist() == filled[:, 1, 1].tolist() == [16, 0, 200]


def test_the_blur_leaves_no_detail_of_a_token() -> None:
    """A checkerboard of pixels is grey behind it; the step between two halves of many tokens is not."""
    board = (np.indices((32, 32)).sum(axis=0) % 2 * 255).astype(np.uint8)
    blurred = filling(np.stack([board] * 3), "blur", grid=(8, 8))
    assert np.abs(blurred.astype(int) - 127.5).max() < 3
    halves = np.repeat([[0] * 16 + [255] * 16], 32, axis=0).astype(np.uint8)
    blurred = filling(np.stack([halves] * 3), "blur", grid=(8, 8))
    assert blurred[0, 16, 0] < 3 and blurred[0, 16, 31] > 252
    # A Gaussian step at its centre, ± half a pixel of a standard deviation of four.
    assert blurred[0, 16, 16] == pytest.approx(255 * 0.5497, abs=1.5)


def test_the_blur_knows_the_sides_of_oblong_tokens() -> None:
    spot = np.zeros((3, 60, 60), np.uint8)
    spot[:, 30, 30] = 255
    spread = filling(spot * 1, "blur", grid=(60, 15)).astype(int)[0]
    assert (spread.max(axis=0) > 0).sum() > 3 * (spread.max(axis=1) > 0).sum() > 0


def test_a_mosaic_has_four_images_in_its_quarters() -> None:
    four = [np.full((3, 6, 5), value, np.uint8) for value in (10, 60, 110, 160)]
    whole = mosaic(four)
    assert whole.shape == (3, 6, 5)
    for (rows, columns), value in zip(
        [
            (slice(0, 3), slice(0, 2)),
            (slice(0, 3), slice(2, 5)),
            (slice(3, 6), slice(0, 2)),
            (slice(3, 6), slice(2, 5)),
        ],
        (10, 60, 110, 160),
        strict=True,
    ):
        assert (whole[:, rows, columns] == value).all()
