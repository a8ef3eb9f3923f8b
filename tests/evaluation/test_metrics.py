"""Each metric on cases that are computed by hand, and against other people's implementations of it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, jaccard_score

from fvit.evaluation.metrics import (
    THRESHOLDS,
    Overlap,
    area_under,
    average_precision,
    average_precision_of_both,
    enlarged,
    ranked,
    removed_counts,
    scaled,
    segmented,
)
from fvit.runtime.masks import BACKGROUND, OBJECT, VOID, covered, tokens_of_pixels

Floats = NDArray[np.float64]


def test_tenths_of_the_tokens_are_rounded_down() -> None:
    assert removed_counts(16) == (1, 3, 4, 6, 8, 9, 11, 12, 14)
    assert removed_counts(10) == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert removed_counts(4) == (0, 0, 1, 1, 2, 2, 2, 3, 3)


def test_the_largest_come_first_and_ties_fall_at_random() -> None:
    """Many tokens that an explanation gives nothing are not in the order of the image's rows."""
    orders = [ranked(np.array([0.0, 0.3, 0.0, 0.7, 0.0]), seed=seed).tolist() for seed in range(60)]
    assert {tuple(order[:2]) for order in orders} == {(3, 1)}
    assert len({tuple(order[2:]) for order in orders}) == 6
    assert orders[7] == ranked(np.array([0.0, 0.3, 0.0, 0.7, 0.0]), seed=7).tolist()


def test_the_area_under_a_curve() -> None:
    assert area_under(np.ones(10)) == pytest.approx(0.9)
    falling = np.array([1, 1, 1, 0.5, 0, 0, 0, 0, 0, 0])
    assert area_under(falling) == pytest.approx(0.1 + 0.1 + 0.075 + 0.025)
    two = np.stack([falling, np.ones(10)])
    assert area_under(two) == pytest.approx([auc(np.arange(10) / 10, curve) for curve in two])


def test_a_pixel_belongs_to_the_token_that_its_centre_lies_in() -> None:
    assert tokens_of_pixels((4, 4), (2, 2)).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    # Five pixels in two columns: the third's centre, at 2.5, begins the second column.
    assert tokens_of_pixels((1, 5), (1, 2)).tolist() == [[0, 0, 1, 1, 1]]
    assert tokens_of_pixels((2, 3), (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_shares_of_tokens_in_a_region() -> None:
    region = np.zeros((4, 4), np.bool_)
    region[0, :3] = region[3, 3] = True
    assert covered(region, (2, 2)).tolist() == [0.5, 0.25, 0, 0.25]


def test_enlarging_is_torch_s_bilinear() -> None:
    draw = np.random.default_rng(0)
    for grid, size in (((4, 4), (64, 64)), ((3, 2), (16, 18)), ((14, 14), (224, 224)), ((2, 2), (5, 7))):
        values = draw.random(grid)
        wanted = torch.nn.functional.interpolate(
            torch.tensor(values, dtype=torch.float32)[None, None], size=size, mode="bilinear"
        )
        np.testing.assert_allclose(enlarged(values, size), wanted[0, 0].numpy(), atol=1e-6)


def test_average_precision_by_hand() -> None:
    # Ranked: hit, miss, hit, miss. Precision at the hits 1 and 2/3, each a step of one half in recall.
    scores, truth = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    assert average_precision(scores, truth) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # Pixels that score alike come together: of the upper two one is hit, of all four two.
    tied = np.array([0.9, 0.9, 0.1, 0.1])
    assert average_precision(tied, truth) == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 4)
    assert average_precision(scores, np.zeros(4, np.bool_)) == 0


def test_average_precision_is_scikit_learn_s() -> None:
    draw = np.random.default_rng(1)
    for _ in range(50):
        truth = draw.random(16) < draw.random()
        scores = draw.integers(0, 5, 16) / 4  # ties, and one minus a score is exact
        if truth.any():
            assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores))
        both = average_precision_score(
            np.stack([truth, ~truth]).ravel(), np.stack([scores, 1 - scores]).ravel()
        )
        found = average_precision_of_both(scores.astype(np.float32), truth)
        assert found == pytest.approx(both, abs=1e-6)


def test_a_map_as_a_segmentation_by_hand() -> None:
    """2×2 tokens on 2×2 pixels, where nothing is enlarged: .1 .2 / .3 .4, scaled 0 ⅓ / ⅔ 1 with mean ½."""
    values = np.array([[0.1, 0.2], [0.3, 0.4]])
    mask = np.array([[BACKGROUND, OBJECT], [BACKGROUND, OBJECT]], np.int8)
    found = segmented(values, mask)
    assert found.at_mean == Overlap(predicted=2, hit=1)
    by_threshold = dict(zip(THRESHOLDS.tolist(), found.at, strict=True))
    assert by_threshold[0.0] == Overlap(3, 2)
    assert by_threshold[0.3] == Overlap(3, 2)
    assert by_threshold[0.35] == Overlap(2, 1)
    assert by_threshold[0.7] == Overlap(1, 1)
    # Twice each pixel: for the object 1 (true) ⅔ ⅓ (true) 0; for the background 1 (true) ⅔ ⅓ (true) 0.
    assert found.average_precision == pytest.approx(0.5 * 1 + 0.5 * 4 / 6)


def test_void_pixels_count_neither_for_nor_against() -> None:
    values = np.array([[0.1, 0.2], [0.3, 0.4]])
    mask = np.array([[VOID, OBJECT], [BACKGROUND, VOID]], np.int8)
    found = segmented(values, mask)
    assert found.at_mean == Overlap(predicted=1, hit=0)
    assert found.at[0] == Overlap(predicted=2, hit=1)
    # Of the two pixels that count ⅔ is wrong and ⅓ right, for object and background alike: misses come first.
    assert found.average_precision == pytest.approx(2 / 4)


def test_a_map_without_any_difference_says_background_everywhere() -> None:
    mask = np.array([[BACKGROUND, OBJECT], [BACKGROUND, OBJECT]], np.int8)
    found = segmented(np.full((2, 2), 0.25), mask)
    assert found.at_mean == Overlap(0, 0)
    assert set(found.at) == {Overlap(0, 0)}
    assert found.average_precision == 0.5
    assert scaled(np.full(4, 7, np.float32)).tolist() == [0, 0, 0, 0]


def test_overlaps_give_scikit_learn_s_jaccard() -> None:
    draw = np.random.default_rng(2)
    for _ in range(20):
        values = draw.random((4, 4))
        mask = np.where(draw.random((8, 8)) < 0.4, OBJECT, BACKGROUND).astype(np.int8)
        map_ = enlarged(values, (8, 8))
        taken = (map_ > map_.mean(dtype=np.float64)).ravel()
        cut, truth = segmented(values, mask).at_mean, (mask == OBJECT).ravel()
        either = cut.predicted + int(truth.sum()) - cut.hit
        assert cut.hit / either == pytest.approx(jaccard_score(truth, taken))
        background = (64 - either) / (64 - cut.hit)
        assert background == pytest.approx(jaccard_score(~truth, ~taken))
