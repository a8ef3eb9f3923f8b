import numpy as np
import pytest
from scipy import stats

from fvit.certificates.bounds import LogWealth, clopper_pearson


@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-6])
@pytest.mark.parametrize("n", [1, 10, 1000])
def test_clopper_pearson_solves_its_defining_equations(alpha: float, n: int) -> None:
    counts = np.unique(np.linspace(0, n, 7).astype(int))
    lower, upper = clopper_pearson(counts, n, alpha=alpha)
    for count, low, high in zip(counts, lower, upper, strict=True):
        if count > 0:  # at the lower bound, so many successes or more have probability alpha
            assert stats.binom.sf(count - 1, n, low) == pytest.approx(alpha, rel=1e-6)
        else:
            assert low == 0
        if count < n:
            assert stats.binom.cdf(count, n, high) == pytest.approx(alpha, rel=1e-6)
        else:
            assert high == 1


def test_clopper_pearson_covers_exactly_computed() -> None:
    n, alpha = 30, 0.05
    counts = np.arange(n + 1)
    lower, upper = clopper_pearson(counts, n, alpha=alpha)
    for p in np.linspace(0.01, 0.99, 99):
        mass = stats.binom.pmf(counts, n, p)
        assert mass[lower > p].sum() <= alpha + 1e-12
        assert mass[upper < p].sum() <= alpha + 1e-12


@pytest.mark.parametrize("count", [-1, 11])
def test_clopper_pearson_refuses_impossible_counts(count: int) -> None:
    with pytest.raises(ValueError, match="counts"):
        clopper_pearson(count, 10, alpha=0.05)


def test_betting_bounds_cover_at_every_n_at_once() -> None:
    """2,000 streams of skewed values with known mean, looked at after every doubling."""
    rng = np.random.default_rng(0)
    streams, alpha = 2000, 0.1
    for a, b in ((0.2, 4.0), (2.0, 60.0), (3.0, 1.0)):
        mean = a / (a + b)
        wealth = LogWealth(streams)
        too_high = np.zeros(streams, bool)
        too_low = np.zeros(streams, bool)
        for n in (10, 10, 20, 40, 80, 160):
            wealth.add(rng.beta(a, b, (n, streams)))
            lower, upper = wealth.bounds(alpha=alpha)
            too_high |= lower > mean
            too_low |= upper < mean
        limit = alpha + 3 * np.sqrt(alpha * (1 - alpha) / streams)
        assert too_high.mean() <= limit
        assert too_low.mean() <= limit


def test_betting_bounds_close_in_on_values_of_small_variance() -> None:
    rng = np.random.default_rng(1)
    wealth = LogWealth(1)
    wealth.add(np.clip(rng.normal(0.08, 0.01, (10_000, 1)), 0, 1))
    lower, upper = wealth.bounds(alpha=1e-5)
    assert 0.075 < lower[0] < 0.08 < upper[0] < 0.085


def test_repeating_a_copy_is_the_same_as_adding_it_again_and_again() -> None:
    copy = np.array([0.0, 0.3, 1.0])
    one, other = LogWealth(3), LogWealth(3)
    one.add(np.tile(copy, (50, 1)))
    other.add_repeated(copy, 50)
    assert np.allclose(one.bounds(alpha=0.01), other.bounds(alpha=0.01))
