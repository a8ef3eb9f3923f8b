import numpy as np
import pytest
from PIL import Image

from fvit.runtime.drawing import draw_map


@pytest.mark.parametrize("kind", ["black", "white", "noise"])
def test_each_channel_of_colour_tells_the_three_sides_apart_on_any_picture(kind: str) -> None:
    """So does every mixture of them: what is left in grey, or to an eye that lacks a kind of cone."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 64, 48), np.uint8)
    pixels = {"black": np.zeros_like(pixels), "white": np.full_like(pixels, 255), "noise": pixels}[kind]
    sides = rng.integers(-1, 2, (14, 10)).astype(np.int8)
    drawn = draw_map(pixels, sides, size=(300, 420))
    assert (drawn.mode, drawn.size) == ("RGB", (300, 420))
    token = sides.repeat(30, axis=0).repeat(30, axis=1)
    for channel in (*np.asarray(drawn).transpose(2, 0, 1), np.asarray(drawn.convert("L"))):
        inside, unknown, outside = (channel[token == side] for side in (1, 0, -1))
        assert inside.min() > unknown.max() + 10
        assert unknown.min() > outside.max() + 10


def test_an_open_token_is_hatched_and_one_that_is_in_has_an_outline() -> None:
    pixels = np.full((3, 8, 8), 90, np.uint8)
    inside, unknown, outside = (
        np.asarray(draw_map(pixels, np.full((1, 1), side, np.int8), size=(40, 40)).convert("L"))
        for side in (1, 0, -1)
    )
    assert len(np.unique(outside)) == 1
    assert len(np.unique(unknown)) == len(np.unique(inside)) == 2
    assert inside[0].tolist() == inside[:, -1].tolist() == [255] * 40
    assert inside[20, 20] < 255
    assert len({tuple(unknown[row] == unknown.max()) for row in range(8)}) > 1  # lines that are not upright


def test_the_picture_is_seen_through_the_map() -> None:
    pixels = np.zeros((3, 8, 8), np.uint8)
    pixels[:, :, 4:] = 255
    drawn = np.asarray(draw_map(pixels, np.full((2, 2), -1, np.int8), size=(64, 64)).convert("L"))
    assert drawn[:, 40:].min() > drawn[:, :24].max() + 20
    assert Image.fromarray(drawn).size == (64, 64)
