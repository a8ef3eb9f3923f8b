from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.special import betaln, logsumexp

from fvit.certificates.bounds import BETS, betting_bounds, clopper_pearson, fixed_bounds, mixture_bounds

LEVELS = pytest.mark.parametrize(
    ("level", "floor"), [(0.3, 0.0), (1e-2, 0.0), (1e-5, 0.0), (0.3, 0.05), (1e-3, 1e-3), (1e-5, 0.01)]
)
BOTH = pytest.mark.parametrize("bounds", [fixed_bounds, mixture_bounds])
Bounds = Callable[..., tuple[np.ndarray, np.ndarray]]


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


@pytest.mark.parametrize("bounds", [fixed_bounds, mixture_bounds])
@pytest.mark.parametrize(("count", "level"), [(-1, 0.1), (11, 0.1), (np.nan, 0.1), (5, 0.0), (5, 1.0)])
def test_impossible_counts_and_levels_are_refused(bounds: Bounds, count: float, level: float) -> None:
    with pytest.raises(ValueError, match="counts|level"):
        bounds(count, 10, level=level)
    with pytest.raises(ValueError, match="counts"):
        clopper_pearson(11, 10, alpha=0.05)


@BOTH
@pytest.mark.parametrize("floor", [-0.01, 0.95])
def test_levels_stay_between_0_and_1_for_all_values(bounds: Bounds, floor: float) -> None:
    with pytest.raises(ValueError, match="level"):
        bounds(5, 10, level=0.1, floor=floor)


def _refused_at_fixed_n(p: np.ndarray, count: int, n: int, level: float, floor: float) -> np.ndarray:
    """The definition, by SciPy's distribution."""
    below = stats.binom.logsf(count - 1, n, p) <= np.log((level * p + floor) * p)
    above = stats.binom.logcdf(count, n, p) <= np.log((level * p + floor) * (1 - p))
    return np.asarray(below | above)


def _refused_at_any_n(p: np.ndarray, count: int, n: int, level: float, floor: float) -> np.ndarray:
    """The definition, by the product of an urn: what each copy adds to the likelihood ratio."""
    log_ratio = np.zeros_like(p)
    for i in range(count):
        log_ratio += np.log(2 * p + i) - np.log(p)
    for i in range(n - count):
        log_ratio += np.log(2 * (1 - p) + i) - np.log(1 - p)
    log_ratio -= np.log(2.0 + np.arange(n)).sum()
    return np.asarray(log_ratio >= -np.log(level * p + floor))


@pytest.mark.parametrize(
    ("bounds", "definition"), [(fixed_bounds, _refused_at_fixed_n), (mixture_bounds, _refused_at_any_n)]
)
@pytest.mark.parametrize("n", [1, 7, 60, 300])
@LEVELS
def test_what_is_not_refused_is_the_interval_between_the_bounds(
    bounds: Bounds, definition: Callable[..., np.ndarray], n: int, level: float, floor: float
) -> None:
    grid = np.concatenate([np.geomspace(1e-9, 1e-3, 60), np.linspace(0.0011, 0.9989, 700)])
    grid = np.concatenate([grid, 1 - np.geomspace(1e-3, 1e-9, 60)])
    for count in np.unique(np.linspace(0, n, 9).astype(int)):
        lower, upper = bounds(count, n, level=level, floor=floor)
        assert lower <= count / n <= upper
        kept = ~definition(grid, int(count), n, level, floor)
        inside = (grid > lower) & (grid < upper)
        near = np.minimum(abs(grid - lower), abs(grid - upper)) < 1e-9
        assert (kept == inside)[~near].all()


@BOTH
@pytest.mark.parametrize("n", [1, 2, 3, 25, 400, 100_000])
@pytest.mark.parametrize(
    ("level", "floor"), [(0.4, 0.0), (0.3, 0.1), (1e-3, 0.0), (1e-3, 1e-6), (1e-9, 0.02), (1e-300, 0.0)]
)
def test_both_ends_grow_with_the_count(bounds: Bounds, n: int, level: float, floor: float) -> None:
    counts = np.arange(n + 1) if n <= 400 else np.unique(np.linspace(0, n, 500).astype(int))
    lower, upper = bounds(counts, n, level=level, floor=floor)
    assert (np.diff(lower) >= 0).all()
    assert (np.diff(upper) >= 0).all()
    assert (lower <= counts / n).all()
    assert (upper >= counts / n).all()
    assert lower[0] == 0
    assert upper[-1] == 1


@BOTH
def test_a_smaller_level_gives_a_wider_interval(bounds: Bounds) -> None:
    counts = np.arange(0, 501, 20)
    intervals = [bounds(counts, 500, level=level) for level in (1e-1, 1e-3, 1e-9, 1e-30)]
    for (low, high), (lower, higher) in pairwise(intervals):
        assert (lower <= low).all()
        assert (higher >= high).all()


@pytest.mark.parametrize("n", [1, 10, 40, 150])
@LEVELS
def test_at_a_fixed_n_a_value_is_refused_with_probability_at_most_its_level(
    n: int, level: float, floor: float
) -> None:
    """Exact sums over all counts."""
    counts = np.arange(n + 1)
    lower, upper = fixed_bounds(counts, n, level=level, floor=floor)
    for p in np.concatenate([np.geomspace(1e-5, 0.01, 10), np.linspace(0.011, 0.989, 90), [0.999, 0.99999]]):
        refused = (lower > p) | (upper < p)
        assert stats.binom.pmf(counts, n, p)[refused].sum() <= (level * p + floor) * (1 + 1e-9)


@pytest.mark.parametrize(("level", "floor"), [(0.3, 0.0), (0.05, 0.02)])
def test_at_every_n_at_once_a_value_is_ever_refused_with_probability_at_most_its_level(
    level: float, floor: float
) -> None:
    """Exact recursion over (copies, count): what is refused once is taken out and summed."""
    values = np.array([0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 0.999])
    alive = np.zeros((len(values), 402))
    alive[:, 0] = 1
    refused = np.zeros(len(values))
    for n in range(1, 401):
        moved = alive * (1 - values[:, None])
        moved[:, 1:] += alive[:, :-1] * values[:, None]
        lower, upper = mixture_bounds(np.arange(n + 1), n, level=level, floor=floor)
        out = (lower > values[:, None]) | (upper < values[:, None])
        refused += np.where(out, moved[:, : n + 1], 0).sum(axis=1)
        moved[:, : n + 1][out] = 0
        alive = moved
    assert (refused <= (level * values + floor) * (1 + 1e-9)).all()
    assert refused[values == 0.9] > 0.4 * (level * 0.9 + floor)  # little of the level is left unspent


@BOTH
def test_tiny_levels_and_a_billion_copies_are_no_trouble(bounds: Bounds) -> None:
    n = 10**9
    lower, upper = bounds([0, 3, 5 * 10**8, n - 3, n], n, level=1e-300)
    assert np.isfinite([lower, upper]).all()
    assert 0.49 < lower[2] < 0.5 < upper[2] < 0.51
    assert 1 - 1e-5 < lower[4] < 1
    assert 0 < upper[0] < 1e-5
    few, many = bounds(90, 100, level=1e-4), bounds(9 * 10**8, n, level=1e-4)
    assert few[0] < 0.8 < 0.8999 < many[0] < 0.9 < many[1] < 0.9001


def test_levels_may_differ_from_count_to_count() -> None:
    lower, upper = mixture_bounds([40, 60], 100, level=[1e-2, 1e-5], floor=[0.0, 1e-4])
    one, other = mixture_bounds(40, 100, level=1e-2), mixture_bounds(60, 100, level=1e-5, floor=1e-4)
    assert [lower[0], upper[0]] == pytest.approx([one[0], one[1]], abs=1e-14)
    assert [lower[1], upper[1]] == pytest.approx([other[0], other[1]], abs=1e-14)


def test_the_ratio_is_that_of_the_mixture() -> None:
    """∫ Beta(2p, 2(1−p)) likelihood / likelihood at p, by quadrature."""
    p, count, n = 0.7, 18, 40
    x = np.linspace(0, 1, 400_001)[1:-1]
    density = stats.beta.pdf(x, 2 * p, 2 * (1 - p))
    ratio = np.trapezoid(density * np.exp(count * np.log(x / p) + (n - count) * np.log((1 - x) / (1 - p))), x)
    closed = betaln(count + 2 * p, n - count + 2 * (1 - p)) - betaln(2 * p, 2 * (1 - p))
    closed -= count * np.log(p) + (n - count) * np.log(1 - p)
    assert np.log(ratio) == pytest.approx(closed, abs=1e-3)
    # Refused, here from above, exactly where that reaches one over level·p.
    edge = np.exp(-closed) / p
    assert (
        mixture_bounds(count, n, level=1.001 * edge)[1] < p < mixture_bounds(count, n, level=0.999 * edge)[1]
    )


# --- means -----------------------------------------------------------------------------------------------


def _logarithms(values: np.ndarray) -> np.ndarray:
    """[bets, N] of values [copies, N]."""
    return np.asarray(np.log1p(BETS[:, None, None] * values).sum(axis=1))


def test_betting_bounds_hold_for_all_tokens_at_every_n_at_once() -> None:
    """250 streams of attributions over 8 tokens with known means, looked at seven times."""
    rng = np.random.default_rng(0)
    lean = np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05])
    mean, alpha, streams, failed = lean / lean.sum(), 0.2, 250, 0
    for _ in range(streams):
        values = rng.dirichlet(lean * 2, 400)
        logarithms = np.log1p(BETS[:, None, None] * values).cumsum(axis=1)
        wrong = False
        for n in (5, 10, 20, 40, 100, 200, 400):
            means = values[:n].mean(axis=0)
            lower, upper = betting_bounds(logarithms[:, n - 1], n, mean=means, alpha=alpha)
            wrong |= bool((lower > mean).any() or (upper < mean).any())
        failed += wrong
    assert failed / streams <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / streams)


def test_what_betting_does_not_refuse_is_the_interval_between_its_bounds() -> None:
    rng = np.random.default_rng(2)
    for n in (3, 30, 1000):
        values = rng.dirichlet([6, 3, 1, 0.3], n)
        logs, tokens = _logarithms(values), 4
        lower, upper = betting_bounds(logs, n, mean=values.mean(axis=0), alpha=0.05)
        for p in np.linspace(0.003, 0.997, 300):
            wealth = logs - n * np.log1p(BETS[:, None] * p)
            used = (BETS > 0) & (tokens / n <= BETS)
            below = logsumexp(wealth[used], axis=0) - np.log(12) >= -np.log(0.05 / 4 * (p + 1 / tokens))
            above = logsumexp(wealth[BETS < 0], axis=0) - np.log(10) >= -np.log(0.05 / 2 * p)
            assert (below == (p < lower)).all()
            assert (above == (p > upper)).all()


def test_betting_bounds_close_in_on_values_of_small_variance() -> None:
    rng = np.random.default_rng(1)
    values = np.clip(rng.normal(0.08, 0.01, (10_000, 1)), 0, 1)
    lower, upper = betting_bounds(_logarithms(values), 10_000, mean=values.mean(axis=0), alpha=1e-5)
    assert 0.075 < lower[0] < 0.08 < upper[0] < 0.085
