"""Radii of the literature and the exact worst case: for comparison and analysis, never a claim."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import logsumexp

from fvit.certificates.radii import lost_tokens, probit_gap

Floats = NDArray[np.float64]


# --- section 5.4: the published forms, plug-in estimates for comparison --------------------------------


def published_radius(weights: ArrayLike, *, k: int, beta: float, sigma: float) -> float:
    """σ sup_a √(2ε_a/a) as published in [1, 4] (docs/method.md, section 5.4).

    weights: [N] ≥ 0 with sum 1, exact or estimated; a comparison figure, not a certificate.
    inf where fewer than k0 tokens lie outside. Raises ValueError for weights that are no
    distribution or k outside [1, N].
    """

    def twice_epsilon_over_order(order: Floats, contested: Floats, rest: float) -> Floats:
        mean = _log_power_mean(contested, order)
        return 2 / (order - 1) * np.log(len(contested) * np.exp(mean) + rest)

    return _supremum(twice_epsilon_over_order, weights, k=k, beta=beta, sigma=sigma)


def mirrored_radius(weights: ArrayLike, *, k: int, beta: float, sigma: float) -> float:
    """The mirrored form of [4] (section 5.4): powers 1−a, divergence with its arguments exchanged.

    It exceeds the exact worst case on some weights, so it is a comparison figure only. Arguments,
    inf and errors as published_radius.
    """

    def twice_epsilon_over_order(order: Floats, contested: Floats, rest: float) -> Floats:
        mean = _log_power_mean(contested, 1 - order)
        with np.errstate(divide="ignore"):
            return -2 / order * np.log(len(contested) * np.exp(mean) + rest)

    return _supremum(twice_epsilon_over_order, weights, k=k, beta=beta, sigma=sigma)


def _supremum(form, weights: ArrayLike, *, k: int, beta: float, sigma: float) -> float:  # type: ignore[no-untyped-def]
    """σ √sup over orders 1 < a ≤ 10⁴, on a logarithmic grid in a−1 and then between its points."""
    ranked = _ranked(weights, k=k)
    k0 = lost_tokens(k, beta=beta)
    if k + k0 > len(ranked):
        return math.inf
    contested = ranked[k - k0 : k + k0]
    rest = float(ranked[: k - k0].sum() + ranked[k + k0 :].sum())

    def value(log_excess: ArrayLike) -> Floats:
        found = form(1 + np.exp(np.atleast_1d(np.asarray(log_excess, np.float64))), contested, rest)
        return np.asarray(found, np.float64)

    grid = np.linspace(math.log(1e-5), math.log(1e4), 400)
    values = value(grid)
    best = int(values.argmax())
    near = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    refined = minimize_scalar(lambda x: -float(value(x)[0]), bounds=near, method="bounded")
    return sigma * math.sqrt(max(0.0, float(values[best]), -float(refined.fun)))


def _log_power_mean(values: Floats, powers: Floats) -> Floats:
    """ln of the power mean of `values` for each power (any sign), without overflow."""
    with np.errstate(divide="ignore"):
        logs = np.log(values)
    return (logsumexp(powers[:, None] * logs, axis=1) - math.log(len(values))) / powers


def _ranked(weights: ArrayLike, *, k: int) -> Floats:
    ranked = np.sort(np.asarray(weights, np.float64))[::-1]
    if bool((ranked < 0).any()) or abs(float(ranked.sum()) - 1) > 1e-6:
        raise ValueError("weights must be ≥ 0 and sum to 1")
    if not 1 <= k <= len(ranked):
        raise ValueError(f"k = {k} is not in 1..{len(ranked)}")
    return ranked


# --- section 5.5: the exact worst case, for measuring how tight the certificate is ---------------------


def exact_radius(weights: ArrayLike, *, k: int, beta: float, sigma: float) -> float:
    """σ times the smallest Gaussian shift that can break the top k of exactly known `weights`.

    An analysis figure (section 5.5): no sound certificate from the weights
    alone can be larger. Arguments, inf and errors as published_radius.
    """
    ranked = _ranked(weights, k=k)
    k0 = lost_tokens(k, beta=beta)
    if k + k0 > len(ranked):
        return math.inf
    # Below the smallest survivor or above the largest challenger a threshold only costs more.
    low, high = float(ranked[k + k0 - 1]), min(float(ranked[k - k0]), 1 / k0)
    if low >= high:
        return 0.0

    def shift(threshold: float) -> float:
        return _smallest_shift(ranked, _cheapest_break(ranked, threshold, k=k, k0=k0))

    grid = np.linspace(low, high, 401)
    shifts = [shift(float(c)) for c in grid]
    best = int(np.argmin(shifts))
    near = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    refined = minimize_scalar(shift, bounds=near, method="bounded", options={"xatol": 1e-12})
    return sigma * max(0.0, min(shifts[best], float(refined.fun)))


def _cheapest_break(ranked: Floats, threshold: float, *, k: int, k0: int) -> Floats:
    """q of section 5.5: losers pressed to the threshold, challengers lifted to it, the rest scaled."""

    def shares(scale: float) -> Floats:
        q = scale * ranked
        q[k - k0 : k] = np.minimum(q[k - k0 : k], threshold)
        q[k : k + k0] = np.maximum(q[k : k + k0], threshold)
        return q

    # A scale beyond 1/(mass that scales freely) overshoots; where nothing scales freely, double.
    top = 2.0
    while shares(top).sum() < 1 and top < 1e18:
        top *= 2
    if shares(0.0).sum() >= 1 or shares(top).sum() < 1:
        return shares(0.0) / shares(0.0).sum()
    return shares(float(brentq(lambda s: float(shares(s).sum()) - 1, 0.0, top, xtol=1e-15)))


def _smallest_shift(p: Floats, q: Floats) -> float:
    """The smallest μ with Q(h) ≤ Φ(Φ⁻¹(P(h)) + μ) for all tests h: checked on the ROC's vertices."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(p > 0, q / p, np.where(q > 0, np.inf, 0.0))
    order = np.argsort(-ratio, kind="stable")
    gaps = probit_gap(np.cumsum(q[order])[:-1], np.cumsum(p[order])[:-1])
    return float(gaps.max())
