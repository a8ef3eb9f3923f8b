"""Radii as pure functions of bounds on smoothed values (docs/method.md, sections 4, 5 and 8).

Sources: [1] Hu et al. 2024 (faithful ViTs), [3] Cohen et al. 2019 (class radius), [5] Levine et al. 2019
(Gaussian bound on top-k votes). Radii are in the units of σ.
"""

from __future__ import annotations

import math
from decimal import ROUND_DOWN, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, ndtri

Aggregate = Literal["vote", "mean"]
Floats = NDArray[np.float64]


@lru_cache
def lost_tokens(k: int, *, beta: float) -> int:
    """k0 = ⌊(1−β)k⌋ + 1, the smallest number of lost tokens that breaks an explanation of size k.

    β is read as the fraction with a denominator up to 10⁶ whose float it is or the next one to, so 0.8·10 and
    (1/3)·3 come out exactly, or else as its digits; of k tokens no more than k can be lost. Raises ValueError
    where k < 1 or β is not in (0, 1].
    """
    if k < 1:
        raise ValueError(f"k = {k}: an explanation needs at least one token")
    if not 0 < beta <= 1:
        raise ValueError(f"beta = {beta:g} is not in (0, 1]")
    share = Fraction(beta).limit_denominator(10**6)
    if float(share) not in (beta, math.nextafter(beta, 0), math.nextafter(beta, 1)):
        share = Fraction(repr(float(beta)))
    return min(k, math.floor((1 - share) * k) + 1)


# --- section 4: the class --------------------------------------------------------------------------


def class_radius(p_lower: float, *, sigma: float) -> float:
    """ℓ2 radius σ Φ⁻¹(p_A) of [3], equation 3; 0.0 (abstain) where p_lower ≤ ½."""
    return float(sigma * ndtri(p_lower)) if p_lower > 0.5 else 0.0


def linf_radius(radius: float, *, pixels: int) -> float:
    """The ℓ∞ ball inside an ℓ2 ball: R/√(3HW); `pixels` counts all values of the image, 3HW."""
    return radius / math.sqrt(pixels)


def leads_clearly(leader: int, runner_up: int, *, alpha: float) -> bool:
    """PREDICT of [3]: the two-sided binomial test that the leading class really leads, at level α."""
    # At ½ both tails are alike. Scipy's binomtest finds as much, in a millisecond.
    return leader > runner_up and 2 * float(betainc(leader, runner_up + 1, 0.5)) <= alpha


# --- section 5: the explanation --------------------------------------------------------------------


def attention_radius(
    lower: ArrayLike,
    upper: ArrayLike,
    tokens: ArrayLike,
    *,
    beta: float,
    sigma: float,
    aggregate: Aggregate,
) -> float:
    """ℓ2 radius within which at least βk of `tokens` stay among the top k (section 5.1).

    lower, upper: [N] simultaneous bounds on the smoothed value of each token (only the lower side
    is read for `tokens`, only the upper side elsewhere). tokens: [k] distinct indices, the
    explanation. Returns 0.0 where nothing is certified, inf where fewer than k0 tokens are outside.
    Raises ValueError where tokens repeat or leave [0, N), or β is not in (0, 1].
    """
    k0 = lost_tokens(len(np.asarray(tokens)), beta=beta)
    return float(attention_radii(lower, upper, tokens, sigma=sigma, aggregate=aggregate)[k0 - 1])


def attention_radii(
    lower: ArrayLike, upper: ArrayLike, tokens: ArrayLike, *, sigma: float, aggregate: Aggregate
) -> Floats:
    """[k] the attention radius for every k0 = 1..k, that is for every β at once, from one set of
    bounds. Arguments, 0.0, inf and errors as attention_radius."""
    lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    inside = _inside(tokens, count=len(lower))
    survivors, challengers = np.sort(lower[inside]), np.sort(upper[~inside])[::-1]
    radii = np.full(len(survivors), math.inf)
    for k0 in range(1, min(len(survivors), len(challengers)) + 1):
        # Best survivor and weakest challenger first.
        kept = _first_m(survivors[:k0][::-1], aggregate)
        gaps = probit_gap(kept, _first_m(challengers[:k0][::-1], aggregate))
        if aggregate == "mean":  # a sum that was cut at 1 is no lower bound on anything below 1
            gaps = np.where(kept < 1, gaps, -np.inf)
        radii[k0 - 1] = max(0.0, float(sigma / 2 * gaps.max()))
    return radii


def attainable_radius(
    lower: ArrayLike, upper: ArrayLike, *, k: int, beta: float, sigma: float, aggregate: Aggregate
) -> float:
    """What attention_radius stays within at the exact values, for whichever k tokens (section 5.1).

    lower, upper: [N] as there; here the upper side stands for the tokens at ranks k−k0+1 … k, the lower
    side for those at ranks k+1 … k+k0, each side ranked by itself over all tokens. inf where fewer
    than k0 tokens are outside or a bound at 0 or 1 rules nothing out.
    """
    lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    k0 = lost_tokens(k, beta=beta)
    if k + k0 > len(lower):
        return math.inf
    survivors = np.sort(upper)[::-1][k - k0 : k]
    challengers = np.sort(lower)[::-1][k : k + k0][::-1]
    high, low = _first_m(survivors, aggregate), _first_m(challengers, aggregate)
    gaps = np.where((high >= 1) | (low <= 0), np.inf, probit_gap(high, low))
    return max(0.0, float(sigma / 2 * gaps.max()))


def token_radii(lower: ArrayLike, upper: ArrayLike, tokens: ArrayLike, *, sigma: float) -> Floats:
    """[k] ℓ2 radius up to which each token on its own stays in the top k, in the order of `tokens`.

    Section 5.2: while it lies above every token outside it cannot fall below place k. 0.0 where
    nothing is certified. Raises ValueError as attention_radius does.
    """
    lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    inside = _inside(tokens, count=len(lower))
    chosen = lower[np.asarray(tokens)]
    if bool(inside.all()):
        return np.full(len(chosen), math.inf)
    gaps = probit_gap(chosen, np.full_like(chosen, upper[~inside].max()))
    return np.maximum(0.0, sigma / 2 * gaps)


def map_radii(lower: ArrayLike, upper: ArrayLike, *, sigma: float) -> Floats:
    """[N] signed ℓ2 radius within which each token keeps its side of the certified map (section 5.3).

    lower, upper: [N] simultaneous bounds on smoothed votes. σ Φ⁻¹(L) > 0 where L > ½: the token is in;
    σ Φ⁻¹(U) < 0 where U < ½: it is out; 0.0 elsewhere: its side is open. Infinite where the bound is
    1 or 0, which no number of copies gives.
    """
    lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    return np.asarray(sigma * (ndtri(np.maximum(lower, 0.5)) + ndtri(np.minimum(upper, 0.5))))


def shortened(radii: Floats, *, sigma: float) -> Floats:
    """Towards 0 to a multiple of 10^(⌊log₁₀ σ⌋ − 3): what holds within a radius holds within less, and
    four digits take a fifth of the place in a record (section 5.3)."""
    steps = 10.0 ** (3 - math.floor(math.log10(sigma)))
    return np.asarray(np.trunc(radii * steps) / steps + 0.0)  # + 0.0 takes the sign from −0.0


def in_digits(radius: float, *, digits: int) -> str:
    """A radius >= 0 as a person reads it, cut off after so many decimals: rounded up it would claim more."""
    step = Decimal(1).scaleb(-digits)
    return str(Decimal(repr(float(radius))).quantize(step, rounding=ROUND_DOWN))


def _inside(tokens: ArrayLike, *, count: int) -> NDArray[np.bool_]:
    chosen = np.asarray(tokens)
    if chosen.ndim != 1 or len(chosen) == 0 or len(np.unique(chosen)) != len(chosen):
        raise ValueError("tokens must be a list of distinct indices")
    if chosen.min() < 0 or chosen.max() >= count:
        raise ValueError(f"tokens must lie in 0..{count - 1}")
    inside = np.zeros(count, np.bool_)
    inside[chosen] = True
    return inside


def _first_m(values: Floats, aggregate: Aggregate) -> Floats:
    """A_m for m = 1..k0. One vote of each of m tokens: their average is a test in [0,1]; the shares
    of a copy's attribution sum to at most 1, so there the sum itself is one."""
    sums = np.cumsum(values)
    return sums / np.arange(1, len(values) + 1) if aggregate == "vote" else np.minimum(sums, 1.0)


def probit_gap(high: Floats, low: Floats) -> Floats:
    """Φ⁻¹(high) − Φ⁻¹(low); −inf where both are 0 or both are 1, which decides nothing."""
    undecided = ((high <= 0) & (low <= 0)) | ((high >= 1) & (low >= 1))
    with np.errstate(invalid="ignore"):
        return np.where(undecided, -np.inf, ndtri(np.clip(high, 0, 1)) - ndtri(np.clip(low, 0, 1)))


# --- section 8: the prediction distribution --------------------------------------------------------


def renyi_divergence(radius: float, *, order: float, sigma: float) -> float:
    """Bound a R²/(2σ²) on D_a between the mean class distributions at x' and x, ‖x'−x‖₂ ≤ R."""
    if order <= 1:
        raise ValueError(f"order = {order:g}: the Rényi order must be greater than 1")
    return order * radius**2 / (2 * sigma**2)


def faithful_radius(attention: float, *, gamma: float, order: float, sigma: float) -> float:
    """ℓ2 radius of the (R, D_a, γ, β, k, ‖·‖₂)-faithfulness of [1]: min(R_attention, σ√(2γ/a)).

    Divide by √(3HW) (linf_radius) for ‖·‖∞. Raises ValueError where γ < 0 or order ≤ 1.
    """
    if gamma < 0 or order <= 1:
        raise ValueError(f"gamma = {gamma:g}, order = {order:g}: need gamma ≥ 0 and order > 1")
    return min(attention, sigma * math.sqrt(2 * gamma / order))
