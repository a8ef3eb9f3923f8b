"""The rule that benchmarks/maps.py compares with, and how it compares."""

import numpy as np
import pytest

from benchmarks.maps import compared, radii_of, theirs, verdict


def test_unanimous_copies_are_certified_up_to_where_chance_would_do_as_well() -> None:
    first, tested = np.array([10, 0, 10, 0]), np.array([90, 0, 0, 90])
    edge = (0.001 / 4) ** (1 / 90)
    for tau, passes in ((edge - 1e-6, 1), (edge + 1e-6, 0)):
        found = theirs(first, tested, n0=10, n=100, tau=tau, alpha=0.001)
        assert found.tolist() == [
            passes,
            passes,
            0,
            0,
        ]  # on the side that the first copies chose, or not at all


@pytest.mark.parametrize("tau", [0.6, 0.8])
def test_with_at_most_alpha_any_token_is_certified_that_is_not(tau: float) -> None:
    """All tokens just below τ, independent of each other: where Bonferroni's price is what the errors are."""
    rng, runs, alpha = np.random.default_rng(0), 4000, 0.1
    first = rng.binomial(10, tau - 1e-9, (runs, 50))
    tested = rng.binomial(190, tau - 1e-9, (runs, 50))
    false = theirs(first, tested, n0=10, n=200, tau=tau, alpha=alpha).any(axis=1)
    assert 0.03 < false.mean() < alpha + 3 * np.sqrt(alpha * (1 - alpha) / runs)


def test_both_rules_are_compared_token_by_token_and_the_sign_is_the_images() -> None:
    """Of three images: tokens of which no copy or every copy has them, and one at the edge of its side."""
    votes = np.array([[1000, 0, 520], [1000, 0, 530], [1000, 0, 480]])
    first, radii = np.array([[10, 0, 5]] * 3), radii_of(votes, n=1000)
    assert (radii[:, 0] > 0.5).all() and (radii[:, 1] < -0.5).all() and (radii[:, 2] == 0).all()
    both = compared(first, votes, radii, n=1000, tau=0.9)
    assert both["theirs"] == both["ours"] == pytest.approx(2 / 3)
    assert verdict(both) == "="
    none = compared(first, votes, np.zeros_like(radii), n=1000, tau=0.9)
    assert [none["ours"], none["more"], none["error"]] == pytest.approx([0, -2 / 3, 0])


@pytest.mark.parametrize(
    ("more", "error", "said"), [(0, 0, "="), (0.01, 0.01, "≈"), (0.03, 0.01, "+"), (-0.03, 0.01, "−")]
)
def test_a_difference_is_called_one_where_the_images_tell(more: float, error: float, said: str) -> None:
    assert verdict({"more": more, "error": error}) == said
