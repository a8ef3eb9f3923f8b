import numpy as np
import pytest
from scipy.stats import binom, bootstrap

from fvit.evaluation.figures import Figures, Rows


def test_a_figure_is_a_ratio_of_sums() -> None:
    """Three images with 1 of 2, 0 of 4 and none."""
    numerators, denominators = np.array([[1.0], [0], [0]]), np.array([[2.0], [4], [0]])
    found = Figures([("share",)], numerators, denominators).of(("share",))
    assert found["value"] == pytest.approx(1 / 6, abs=1e-6)
    assert found["images"] == 2
    assert (found["low"], found["high"]) == (0, 0.5)


def test_the_mean_of_several_figures() -> None:
    numerators, denominators = np.array([[1.0, 3], [1, 3]]), np.array([[2.0, 4], [2, 4]])
    found = Figures([("a",), ("b",)], numerators, denominators).of(("a",), ("b",))
    assert found == {"value": 0.625, "low": 0.625, "high": 0.625, "images": 2}


def test_a_difference_is_of_the_same_images_in_pairs() -> None:
    """Each image has 0.1 more of one than of the other, whatever else they have: there is no width."""
    numerators = np.random.default_rng(0).random((30, 1)) + np.array([[0.1, 0.0]])
    figures = Figures([("a",), ("b",)], numerators, np.ones((30, 2)))
    assert figures.of(("a",))["low"] < figures.of(("b",))["high"]
    assert figures.difference([("a",)], [("b",)]) == {"value": 0.1, "low": 0.1, "high": 0.1, "images": 30}
    assert Figures([("a",), ("b",)], numerators, np.zeros((30, 2))).difference([("a",)], [("b",)]) == {
        "images": 0
    }


def test_nothing_is_said_of_no_image() -> None:
    assert Figures([("a",)], np.zeros((3, 1)), np.zeros((3, 1))).of(("a",)) == {"images": 0}


@pytest.mark.parametrize(("images", "hits"), [(40, 30), (200, 110), (1000, 990)])
def test_the_interval_of_a_share_is_the_binomial_s(images: int, hits: int) -> None:
    """The share in a resample of M images of which h are hits is binomial (M, h/M) over M."""
    numerators = (np.arange(images) < hits).astype(np.float64)[:, None]
    found = Figures([("a",)], numerators, np.ones((images, 1))).of(("a",))
    for edge, level in (("low", 0.025), ("high", 0.975)):
        # 2,000 resamples place a quantile within a tenth of a standard deviation.
        spread = np.sqrt(hits / images * (1 - hits / images) / images)
        assert abs(found[edge] - binom.ppf(level, images, hits / images) / images) < 0.1 * spread + 1 / images


def test_the_interval_of_a_ratio_is_scipy_s() -> None:
    draw = np.random.default_rng(3)
    denominators = draw.integers(1, 20, 60).astype(np.float64)
    numerators = draw.binomial(denominators.astype(int), draw.random(60)).astype(np.float64)
    found = Figures([("a",)], numerators[:, None], denominators[:, None]).of(("a",))
    other = bootstrap(
        (numerators, denominators), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), paired=True,
        vectorized=True, method="percentile", n_resamples=20_000, rng=0,
    )  # fmt: skip
    width = other.confidence_interval.high - other.confidence_interval.low
    assert found["low"] == pytest.approx(other.confidence_interval.low, abs=0.05 * width)
    assert found["high"] == pytest.approx(other.confidence_interval.high, abs=0.05 * width)


def test_rows_become_the_same_figures_in_whatever_order_they_are_asked() -> None:
    def gathered() -> Rows:
        rows = Rows()
        for image in range(30):
            rows.add({("a",): (image % 3 == 0, 1), ("b",): (image, 29.0)})
        return rows

    one, other = gathered().figures(), gathered().figures()
    assert [one.of(("a",)), one.of(("b",))] == [other.of(("b",)), other.of(("a",))][::-1]
    assert one.of(("a",))["value"] == pytest.approx(1 / 3, abs=1e-6)
