import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from fvit.certificates.literature import exact_radius, mirrored_radius, published_radius
from fvit.certificates.radii import (
    Aggregate,
    attainable_radius,
    attention_radius,
    class_radius,
    faithful_radius,
    in_digits,
    leads_clearly,
    linf_radius,
    lost_tokens,
    map_radii,
    renyi_divergence,
    shortened,
    token_radii,
)

# (weights, k, beta, published, mirrored, certificate, exact): sigma = 1.
REFERENCE = [
    ([0.60, 0.15, 0.14, 0.11], 2, 0.5, 0.7445, 0.7198, 0.7399, 0.8322),
    ([0.53, 0.19, 0.15, 0.1299, 0.00005, 0.00005], 3, 1 / 3, 1.0854, 2.8236, 2.1509, 2.3080),
    ([0.4, 0.3, 0.2, 0.1], 1, 1.0, 0.1197, 0.1201, 0.1355, 0.1355),
]


@pytest.mark.parametrize(("weights", "k", "beta", "published", "mirrored", "ours", "exact"), REFERENCE)
def test_reference_table(
    weights: list[float], k: int, beta: float, published: float, mirrored: float, ours: float, exact: float
) -> None:
    assert published_radius(weights, k=k, beta=beta, sigma=1) == pytest.approx(published, abs=1e-3)
    assert mirrored_radius(weights, k=k, beta=beta, sigma=1) == pytest.approx(mirrored, abs=1e-3)
    radius = attention_radius(weights, weights, range(k), beta=beta, sigma=1, aggregate="mean")
    assert radius == pytest.approx(ours, abs=1e-3)
    assert exact_radius(weights, k=k, beta=beta, sigma=1) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize(
    ("k", "beta", "k0"),
    [(10, 0.7, 4), (10, 0.8, 3), (10, 0.9, 2), (3, 1 / 3, 3), (3, 2 / 3, 2), (3, 1 - 1 / 3, 2), (5, 1.0, 1)],
)
def test_lost_tokens_is_right_where_floating_point_misleads(k: int, beta: float, k0: int) -> None:
    assert lost_tokens(k, beta=beta) == k0


@pytest.mark.parametrize(("beta", "k0"), [(0.8000001, 2), (0.800000000001, 2), (0.7999999, 3), (0.8, 3)])
def test_a_beta_that_is_no_fraction_of_small_numbers_is_what_its_digits_say(beta: float, k0: int) -> None:
    """8.000001 of ten tokens are nine."""
    assert lost_tokens(10, beta=beta) == k0


@pytest.mark.parametrize(("k", "beta"), [(0, 0.5), (3, 0.0), (3, 1.01), (3, -1.0), (3, math.nan)])
def test_lost_tokens_refuses_what_means_nothing(k: int, beta: float) -> None:
    with pytest.raises(ValueError, match="k =|beta"):
        lost_tokens(k, beta=beta)


def test_class_radius_is_the_distance_to_the_half_space_of_a_linear_model() -> None:
    for margin in (0.1, 1.0, 2.5):
        assert class_radius(norm.cdf(margin / 0.5), sigma=0.5) == pytest.approx(margin)
    assert class_radius(0.5, sigma=1) == class_radius(0.2, sigma=1) == 0.0


def test_linf_ball_lies_inside_the_l2_ball() -> None:
    assert linf_radius(2.0, pixels=4) == 1.0


def test_prediction_needs_a_clear_lead() -> None:
    assert leads_clearly(32, 0, alpha=1e-3)
    assert not leads_clearly(17, 15, alpha=1e-3)
    for behind in ((0, 0), (7, 7), (0, 32)):
        assert not leads_clearly(*behind, alpha=0.999)


def test_a_lead_is_judged_by_the_two_sided_binomial_test() -> None:
    for both in (1, 2, 7, 32, 1001):
        for leader in range(both // 2 + 1, both + 1):
            expected = binomtest(leader, both, 0.5).pvalue
            assert leads_clearly(leader, both - leader, alpha=expected * (1 + 1e-9))
            assert not leads_clearly(leader, both - leader, alpha=expected * (1 - 1e-9))


def test_renyi_divergence_is_that_of_two_shifted_gaussians() -> None:
    """D_a of N(R, σ²) from N(0, σ²) by quadrature: post-processing cannot exceed it."""
    radius, sigma, order = 0.7, 0.5, 3.0
    x = np.linspace(-8, 9, 200_001)
    p, q = norm.pdf(x, radius, sigma), norm.pdf(x, 0, sigma)
    divergence = math.log(np.trapezoid(p**order * q ** (1 - order), x)) / (order - 1)
    assert renyi_divergence(radius, order=order, sigma=sigma) == pytest.approx(divergence, rel=1e-6)


def test_faithful_radius_is_where_either_side_gives_way() -> None:
    assert faithful_radius(0.3, gamma=100, order=2, sigma=0.25) == 0.3
    tight = faithful_radius(0.3, gamma=0.1, order=2, sigma=0.25)
    assert renyi_divergence(tight, order=2, sigma=0.25) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="order"):
        faithful_radius(0.3, gamma=1, order=1, sigma=0.25)


@pytest.mark.parametrize("tokens", [[0, 0], [-1], [4], []])
def test_attention_radius_refuses_impossible_tokens(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="token"):
        attention_radius([0.1] * 4, [0.2] * 4, tokens, beta=1, sigma=1, aggregate="vote")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray, int, float]:
    """Exact weights in descending order, an explanation size and a beta."""
    raw = draw(st.lists(st.floats(1e-4, 1.0), min_size=3, max_size=12))
    weights = np.sort(np.array(raw))[::-1]
    k = draw(st.integers(1, len(raw) - 1))
    return weights / weights.sum(), k, draw(st.floats(0.05, 1.0))


AGGREGATES = st.sampled_from(["vote", "mean"])


@given(worlds(), AGGREGATES, st.floats(0.0, 0.2), st.integers(0, 11), st.floats(0.0, 0.1))
def test_a_looser_bound_never_gives_a_larger_radius(
    world: tuple[np.ndarray, int, float], aggregate: Aggregate, width: float, which: int, more: float
) -> None:
    weights, k, beta = world
    lower, upper = np.clip(weights - width, 0, 1), np.clip(weights + width, 0, 1)
    before = attention_radius(lower, upper, range(k), beta=beta, sigma=1, aggregate=aggregate)
    which %= len(weights)
    lower[which], upper[which] = max(0.0, lower[which] - more), min(1.0, upper[which] + more)
    assert attention_radius(lower, upper, range(k), beta=beta, sigma=1, aggregate=aggregate) <= before


@given(worlds(), AGGREGATES, st.floats(0.01, 10.0), st.randoms(use_true_random=False))
def test_radius_scales_with_sigma_and_ignores_the_order_of_tokens(
    world: tuple[np.ndarray, int, float], aggregate: Aggregate, sigma: float, random: object
) -> None:
    weights, k, beta = world
    radius = attention_radius(weights, weights, range(k), beta=beta, sigma=1, aggregate=aggregate)
    order = np.random.default_rng(len(weights)).permutation(len(weights))
    tokens = [int(np.flatnonzero(order == j)[0]) for j in range(k)]
    shuffled = attention_radius(
        weights[order], weights[order], tokens[::-1], beta=beta, sigma=sigma, aggregate=aggregate
    )
    assert shuffled == pytest.approx(sigma * radius, rel=1e-9) or math.isinf(radius)


@settings(deadline=None, max_examples=60)
@given(worlds())
def test_radius_from_exact_weights_is_never_above_the_exact_worst_case(
    world: tuple[np.ndarray, int, float],
) -> None:
    weights, k, beta = world
    ours = attention_radius(weights, weights, range(k), beta=beta, sigma=1, aggregate="mean")
    exact = exact_radius(weights, k=k, beta=beta, sigma=1)
    assert ours <= exact + 1e-6 or math.isinf(exact)


@pytest.mark.parametrize("aggregate", ["vote", "mean"])
def test_radius_is_infinite_where_too_few_tokens_lie_outside(aggregate: Aggregate) -> None:
    weights = np.array([0.5, 0.3, 0.2])
    assert math.isinf(attention_radius(weights, weights, [0, 1], beta=0.5, sigma=1, aggregate=aggregate))
    assert math.isinf(published_radius(weights, k=2, beta=0.5, sigma=1))
    assert math.isinf(mirrored_radius(weights, k=2, beta=0.5, sigma=1))
    assert math.isinf(exact_radius(weights, k=2, beta=0.5, sigma=1))


def test_published_forms_do_not_overflow_for_thousands_of_tokens() -> None:
    rng = np.random.default_rng(0)
    for alpha in (0.01, 1.0):
        weights = rng.dirichlet(np.full(5000, alpha))
        for form in (published_radius, mirrored_radius):
            radius = form(weights, k=2000, beta=0.5, sigma=1)
            assert radius >= 0
            assert not math.isnan(radius)


def test_token_radius_is_the_certificate_of_that_token_alone() -> None:
    rng = np.random.default_rng(3)
    lower = np.sort(rng.uniform(0, 1, 8))[::-1]
    radii = token_radii(lower, lower, [0, 1, 2], sigma=0.5)
    for place, token in enumerate((0, 1, 2)):
        rest = [token, 3, 4, 5, 6, 7]
        alone = attention_radius(lower[rest], lower[rest], [0], beta=1, sigma=0.5, aggregate="vote")
        assert radii[place] == pytest.approx(alone)


def test_a_side_of_the_map_is_as_far_from_one_half_as_a_linear_model_says() -> None:
    """Token j is in on a half-space at a distance: it has Φ(distance/σ) of the votes."""
    distances = np.array([2.0, 0.3, 0.0, -0.3, -2.0])
    votes = norm.cdf(distances / 0.5)
    assert map_radii(votes, votes, sigma=0.5) == pytest.approx(distances)
    lower, upper = [0.6, 0.4, 0.1, 0.5, 0.0, 0.2], [0.9, 0.6, 0.3, 1.0, 0.5, 0.2]
    radii = map_radii(lower, upper, sigma=2)
    assert radii.tolist() == pytest.approx([2 * norm.ppf(0.6), 0, 2 * norm.ppf(0.3), 0, 0, 2 * norm.ppf(0.2)])
    assert map_radii(1 - np.array(upper), 1 - np.array(lower), sigma=2) == pytest.approx(-radii)
    assert map_radii([1.0, 0.0], [1.0, 0.0], sigma=1).tolist() == [math.inf, -math.inf]
    assert map_radii([0.7], [0.8], sigma=1) == pytest.approx([norm.ppf(0.7)])  # a grid of one token


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=30), st.floats(0.01, 9.99))
def test_a_shortened_radius_is_never_larger_and_takes_few_digits(
    quotients: list[float], sigma: float
) -> None:
    radii = sigma * np.array(quotients)
    short = shortened(radii, sigma=sigma)
    assert (np.abs(short) <= np.abs(radii) * (1 + 1e-15)).all()
    assert (np.abs(radii - short) < sigma / 999).all()
    assert (short * radii >= 0).all()
    for each in short.tolist():
        assert len(str(each)) <= 8
        assert str(each) != "-0.0"


@given(worlds(), AGGREGATES)
def test_no_choice_of_tokens_exceeds_what_is_attainable_at_exact_values(
    world: tuple[np.ndarray, int, float], aggregate: Aggregate
) -> None:
    """Brute force over all explanations; the largest values attain it."""
    weights, k, beta = world
    weights = weights[:7] / weights[:7].sum()
    k = min(k, len(weights) - 1)
    most = attainable_radius(weights, weights, k=k, beta=beta, sigma=1, aggregate=aggregate)
    radii = [
        attention_radius(weights, weights, tokens, beta=beta, sigma=1, aggregate=aggregate)
        for tokens in itertools.combinations(range(len(weights)), k)
    ]
    assert max(radii) <= most + 1e-12
    if aggregate == "vote" or math.isinf(most):
        assert radii[0] == pytest.approx(most)


@given(worlds(), AGGREGATES, st.floats(0.0, 0.3))
def test_looser_bounds_attain_more_and_never_less_than_they_certify(
    world: tuple[np.ndarray, int, float], aggregate: Aggregate, width: float
) -> None:
    weights, k, beta = world
    lower, upper = np.clip(weights - width, 0, 1), np.clip(weights + width, 0, 1)
    exact = attainable_radius(weights, weights, k=k, beta=beta, sigma=1, aggregate=aggregate)
    loose = attainable_radius(lower, upper, k=k, beta=beta, sigma=1, aggregate=aggregate)
    certified = attention_radius(lower, upper, range(k), beta=beta, sigma=1, aggregate=aggregate)
    assert certified <= exact + 1e-12
    assert exact <= loose + 1e-12


def test_a_sum_of_lower_bounds_that_reaches_one_certifies_nothing() -> None:
    lower, upper = [0.7, 0.5, 0.0, 0.0], [0.8, 0.6, 0.01, 0.01]
    radius = attention_radius(lower, upper, [0, 1], beta=0.5, sigma=1, aggregate="mean")
    # Of the two tests the one of a single token is left.
    assert radius == pytest.approx((norm.ppf(0.7) - norm.ppf(0.01)) / 2)


def _break_distance(smoothed: np.ndarray, coordinates: np.ndarray, k: int, k0: int) -> float:
    """Distance from the origin to the nearest place where k0 of the origin's top k are lost.
    smoothed [M, N] at coordinates [M, D], row 0 at the origin."""
    kept = np.argsort(-smoothed[0], kind="stable")[:k]
    inside = np.zeros(smoothed.shape[1], bool)
    inside[kept] = True
    # Lost for certain: k0 of the explanation lie no higher than k0 of the others.
    survivors = np.sort(smoothed[:, inside], axis=1)[:, k0 - 1]
    challengers = np.sort(smoothed[:, ~inside], axis=1)[:, -k0]
    broken = survivors < challengers
    return float(np.linalg.norm(coordinates[broken], axis=1).min()) if broken.any() else math.inf


class Grid:
    """A grid of one or two inputs, and smoothing with σ = 1 on it by quadrature."""

    def __init__(self, dimensions: int) -> None:
        self.step = 0.02 if dimensions == 1 else 0.1
        self.line = np.arange(-8, 8 + self.step / 2, self.step)
        kernel = norm.pdf(self.line[:, None] - self.line[None])
        self.kernel = kernel / kernel.sum(axis=1, keepdims=True)
        axes = np.meshgrid(*[self.line] * dimensions, indexing="ij")
        self.points = np.stack([axis.ravel() for axis in axes], axis=1)
        inner = np.flatnonzero((np.abs(self.points) <= 4).all(axis=1))
        origin = np.linalg.norm(self.points[inner], axis=1).argmin()
        self.inner = np.r_[inner[origin], np.delete(inner, origin)]
        self.places = self.points[self.inner]

    def scores(self, rng: np.random.Generator, outputs: int) -> np.ndarray:
        """A random smooth function of the inputs: waves and a slope for each output."""
        dimensions = self.points.shape[1]
        waves = np.sin(self.points @ rng.normal(0, 1.2, (dimensions, outputs)) + rng.uniform(0, 6, outputs))
        slopes = self.points @ rng.normal(0, 1, (dimensions, outputs))
        return np.asarray(waves * rng.uniform(0.5, 4) + slopes)

    def smooth(self, values: np.ndarray) -> np.ndarray:
        """values [M, N] on the grid -> smoothed values at `places`, the origin first."""
        dimensions = self.points.shape[1]
        smoothed = values.reshape(*[len(self.line)] * dimensions, values.shape[1])
        for axis in range(dimensions):
            smoothed = np.moveaxis(np.tensordot(self.kernel, smoothed, axes=(1, axis)), 0, axis)
        return np.asarray(smoothed.reshape(-1, values.shape[1])[self.inner])


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("aggregate", ["vote", "mean"])
def test_no_world_solved_by_quadrature_breaks_within_the_radius(
    dimensions: int, aggregate: Aggregate
) -> None:
    """480 random attribution functions; the nearest place that breaks the explanation is searched
    on the whole grid."""
    grid, rng = Grid(dimensions), np.random.default_rng(dimensions)
    certified, tightest = 0, 0.0
    for _ in range(120):
        tokens, k = 6, int(rng.integers(1, 4))
        beta = float(rng.choice([0.4, 0.7, 1.0]))
        scores = grid.scores(rng, tokens)
        values = np.exp(scores - scores.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
        if aggregate == "vote":
            ranks = np.argsort(np.argsort(-values, axis=1), axis=1)
            values = (ranks < k).astype(float)
        smoothed = grid.smooth(values)
        exact = smoothed[0]
        top = np.argsort(-exact, kind="stable")[:k]
        radius = attention_radius(exact, exact, top, beta=beta, sigma=1, aggregate=aggregate)
        true = _break_distance(smoothed, grid.places, k, lost_tokens(k, beta=beta))
        assert radius <= true + 1e-2 * grid.step
        certified += radius > 0
        if math.isfinite(true) and true > 3 * grid.step:
            tightest = max(tightest, radius / true)
    assert certified > 60
    assert tightest > 0.6  # the certificate is not sound merely by saying nothing


@pytest.mark.parametrize("dimensions", [1, 2])
def test_no_token_solved_by_quadrature_changes_its_side_of_the_map_within_its_radius(dimensions: int) -> None:
    """120 random attribution functions of six tokens; the nearest place where a token is on the other side is
    searched."""
    grid, rng = Grid(dimensions), np.random.default_rng(10 + dimensions)
    sides, tightest = [], 0.0
    for _ in range(120):
        k = int(rng.integers(1, 4))
        ranks = np.argsort(np.argsort(-grid.scores(rng, 6), axis=1), axis=1)
        smoothed = grid.smooth((ranks < k).astype(float))
        distances = np.linalg.norm(grid.places, axis=1)
        radii = map_radii(smoothed[0], smoothed[0], sigma=1)
        sides += np.sign(radii).tolist()
        for radius, votes in zip(radii, smoothed.T, strict=True):
            changed = (votes > 0.5) != (votes[0] > 0.5)
            true = float(distances[changed].min()) if changed.any() else math.inf
            assert abs(radius) <= true + 1e-2 * grid.step
            if math.isfinite(true) and true > 3 * grid.step:
                tightest = max(tightest, abs(radius) / true)
    assert min(sides.count(1), sides.count(-1)) > 100
    assert tightest > 0.9


@pytest.mark.parametrize("dimensions", [1, 2])
def test_no_classifier_solved_by_quadrature_changes_within_the_class_radius(dimensions: int) -> None:
    """240 random three-class functions; the nearest place where another class leads is searched."""
    grid, rng = Grid(dimensions), np.random.default_rng(dimensions)
    certified, tightest = 0, 0.0
    for _ in range(120):
        scores = grid.scores(rng, 3)
        smoothed = grid.smooth((scores == scores.max(axis=1, keepdims=True)).astype(float))
        leader = int(smoothed[0].argmax())
        radius = class_radius(float(smoothed[0, leader]), sigma=1)
        changed = smoothed.argmax(axis=1) != leader
        true = float(np.linalg.norm(grid.places[changed], axis=1).min()) if changed.any() else math.inf
        assert radius <= true + 1e-2 * grid.step
        certified += radius > 0
        if math.isfinite(true) and true > 3 * grid.step:
            tightest = max(tightest, radius / true)
    assert certified > 40
    assert tightest > 0.9


@pytest.mark.parametrize(
    ("radius", "said"),
    [(0.4967, "0.49"), (0.29, "0.29"), (0.57, "0.57"), (0.0, "0.00"), (9.999, "9.99"), (1e-7, "0.00")],
)
def test_a_radius_is_never_shown_larger_than_it_is(radius: float, said: str) -> None:
    assert in_digits(radius, digits=2) == said
