import numpy as np
import pytest

from fvit.evaluation.mosaics import fours, mosaic_row
from tests.evaluation.cases import certificate


def test_four_images_of_different_classes_come_together_as_soon_as_they_are_there() -> None:
    items = [("a", 0), ("b", 0), ("c", 1), ("d", 2), ("e", 1), ("f", 3), ("g", 4), ("h", 2)]
    groups = list(fours(items))
    assert groups == [
        [("a", 0), ("c", 1), ("d", 2), ("f", 3)],
        [("b", 0), ("e", 1), ("g", 4), ("h", 2)],
    ]


def test_a_longer_list_begins_with_the_groups_of_a_shorter_one() -> None:
    draw = np.random.default_rng(0)
    items = [(image, int(index)) for image, index in enumerate(draw.integers(0, 6, 200))]
    longer, shorter = list(fours(items)), list(fours(items[:120]))
    assert longer[: len(shorter)] == shorter
    used = [item for group in longer for item, _ in group]
    assert len(used) == len(set(used)) > 150
    assert all(len({index for _, index in group}) == 4 for group in longer)


def test_how_much_of_an_explanation_lies_in_its_quarter() -> None:
    """2×2 tokens, one a quarter. The copies give ½, ¼, ⅛ and ⅛."""
    row = mosaic_row(
        (9, 0, 8, 7), certificate(map_radii=(0.3, 0.1, -0.2, 0.0)), explained={"plain": 8, "smoothed": 0},
        plain=np.array([0.1, 0.2, 0.4, 0.3]), radii=(0.0, 0.2, 0.5),
    )  # fmt: skip
    assert row["explained", "plain"] == row["explained", "smoothed"] == (True, 1)
    assert row["in its quarter", "plain"] == pytest.approx((0.4, 1))
    assert row["in its quarter", "smoothed"] == pytest.approx((0.25, 1))
    assert row["in its quarter", "certified in", 0.0] == (1, 2)
    assert row["in its quarter", "certified in", 0.2] == (0, 1)
    assert row["in its quarter", "certified in", 0.5] == (0, 0)


def test_a_class_that_is_in_no_quarter_is_not_asked_for() -> None:
    row = mosaic_row(
        (9, 6, 8, 7), certificate(map_radii=(0.3, 0.1, -0.2, 0.0)), explained={"plain": 9, "smoothed": 0},
        plain=np.array([0.1, 0.2, 0.4, 0.3]), radii=(0.0,),
    )  # fmt: skip
    assert row["explained", "smoothed"] == (False, 1)
    assert row["in its quarter", "smoothed"] == row["in its quarter", "certified in", 0.0] == (0, 0)
    assert row["in its quarter", "plain"] == pytest.approx((0.1, 1))
