"""Confidence bounds on smoothed values from counts of copies (docs/method.md, section 6). Pure functions.

Levels grow with p: a copy casts exactly k votes, so the values of N tokens sum to k, and the hypothesis "this
token's value is p" may be tested at level a(p) = level·p + floor where level·k + floor·N = α. Then all true
values are kept with probability 1 − α, whatever the dependence between tokens. A class is a token with k = 1,
without a floor: however many classes there are. Bounds on the ends err outwards.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv, betaln, xlog1py, xlogy

Floats = NDArray[np.float64]

EXACT = 54
"""Halvings of an interval of [0,1] after which its ends are as near as floating point tells."""


def clopper_pearson(count: ArrayLike, n: int, *, alpha: float) -> tuple[Floats, Floats]:
    """Exact bounds on a binomial proportion: (lower, upper), each one-sided at level alpha.

    count: successes among n copies, a number or an array; the bounds have its shape. Used one at a
    time each fails with probability at most alpha, both together at most 2·alpha.
    Raises ValueError where a count is outside [0, n] or alpha outside (0, 1).
    """
    successes = _counts(count, n, level=alpha)
    # betaincinv is undefined at the ends, where the bound is 0 or 1; keep it away from them.
    inner = np.clip(successes, 1, None)
    outer = np.clip(successes, None, n - 1)
    lower = np.where(successes > 0, betaincinv(inner, n - inner + 1, alpha), 0.0)
    upper = np.where(successes < n, betaincinv(outer + 1, n - outer, 1 - alpha), 1.0)
    return lower, upper


def fixed_bounds(
    count: ArrayLike, n: int, *, level: ArrayLike, floor: ArrayLike = 0.0
) -> tuple[Floats, Floats]:
    """(lower, upper) on values with `count` votes of n copies, n fixed beforehand (section 6.2).

    p is refused from below where P(C ≥ count) ≤ a(p)·p, from above where P(C ≤ count) ≤ a(p)·(1−p),
    C binomial (n, p), a(p) = level·p + floor. Both ends grow with the count.
    count, level, floor: numbers or arrays that broadcast. Raises ValueError as clopper_pearson does.
    """
    c = _counts(count, n, level=level, floor=floor)
    # What the logarithm of a tail may be off by is taken from the level, so that the ends err outwards.
    margin = 1e-9 + 1e-15 * n

    def refused(p: Floats) -> NDArray[np.bool_]:
        low, high = p
        with np.errstate(divide="ignore"):
            below = np.log(np.where(c > 0, betainc(np.maximum(c, 1), n - c + 1, low), 1.0))
            above = np.log(np.where(c < n, betainc(np.maximum(n - c, 1), c + 1, 1 - high), 1.0))
            return np.stack(
                [
                    below <= _log_level(low, level, floor) + np.log(low) - margin,
                    above <= _log_level(high, level, floor) + np.log1p(-high) - margin,
                ]
            )

    return _ends(refused, best=c / n)


def mixture_bounds(
    count: ArrayLike, n: int, *, level: ArrayLike, floor: ArrayLike = 0.0, halvings: int = EXACT
) -> tuple[Floats, Floats]:
    """(lower, upper) on values with `count` votes of n copies, true at every n at once (section 6.3).

    p is refused where the likelihood ratio of the mixture with prior Beta(2p, 2(1−p)) against p reaches
    1/a(p), a(p) = level·p + floor: a martingale of mean 1, so by Ville's inequality p is ever refused, on
    either side, with probability at most a(p). Both ends grow with the count. Arguments and errors otherwise
    as fixed_bounds. halvings: fewer cost less, and each end lies up to 2^−halvings further out.
    """
    c = _counts(count, n, level=level, floor=floor)
    # Each of the logarithms below is off by a few units in the last place of n·ln n at most.
    margin = 1e-14 * n * np.log(n + 2) + 1e-12

    def refused(p: Floats) -> NDArray[np.bool_]:
        q = 1 - p
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = betaln(c + 2 * p, n - c + 2 * q) - betaln(2 * p, 2 * q) - xlogy(c, p) - xlog1py(n - c, -p)
            return np.asarray(ratio + _log_level(p, level, floor) >= margin)

    return _ends(refused, best=c / n, halvings=halvings)


FROM_BELOW = np.geomspace(0.05, 200.0, 12)
FROM_ABOVE = 1 - np.geomspace(0.98, 0.002, 10)
BETS = np.concatenate([FROM_BELOW, -FROM_ABOVE])
"""What is bet on a share x of a copy's attribution: the wealth grows by the factor 1 + bet·x."""


def betting_bounds(logarithms: Floats, n: int, *, mean: Floats, alpha: float) -> tuple[Floats, Floats]:
    """(lower, upper) [N] on the means of N shares ≥ 0 of sum ≤ 1, true at every n at once (section 6.4).

    logarithms [bets, N]: Σ ln(1 + bet·x) over n copies, a row for each of BETS, or less. mean [N]: that
    of the same copies. All bounds together fail with probability at most alpha.

    With a bet that is fixed before the copies are seen, Π (1 + bet·x)/(1 + bet·p) is a non-negative
    martingale of mean 1 where x has mean p [10], and so is the average over bets. p is refused from
    below where that of the positive bets reaches 1/level, level = alpha·(p + 1/N)/4, and from above
    where that of the negative ones does, level = alpha·p/2: the levels sum to alpha over the tokens.
    """
    tokens = logarithms.shape[1]
    from_below, from_above = np.split(logarithms, [len(FROM_BELOW)])
    # For larger p the level grows, and wealth has to shrink faster: it does where bet ≥ N/n. Leaving
    # the others out only lowers the wealth.
    used = tokens / n <= FROM_BELOW
    bets_below, bets_above = FROM_BELOW[used], -FROM_ABOVE

    def wealth(sums: Floats, bets: Floats, p: Floats, shares: int) -> Floats:
        losses = n * np.log1p(bets[:, None, None] * p)
        return np.asarray(np.logaddexp.reduce(sums[:, None] - losses, axis=0) - np.log(shares))

    def refused(p: Floats) -> NDArray[np.bool_]:
        low, high = p
        with np.errstate(divide="ignore"):
            below = np.log(alpha / 4) + np.log(low + 1 / tokens)
            above = np.log(alpha / 2) + np.log(high)
        return np.stack(
            [
                wealth(from_below[used], bets_below, low, len(FROM_BELOW)) + below >= 1e-9,
                wealth(from_above, bets_above, high, len(FROM_ABOVE)) + above >= 1e-9,
            ]
        )

    return _ends(refused, best=mean)


WIDTH = 96
"""Candidates for ends that are looked at together: more of a few than of many."""


def _log_level(p: Floats, level: ArrayLike, floor: ArrayLike) -> Floats:
    """ln a(p), where level·p may be too small for a float."""
    return np.asarray(np.logaddexp(np.log(level) + np.log(p), np.log(floor)))


def _counts(count: ArrayLike, n: int, *, level: ArrayLike, floor: ArrayLike = 0.0) -> Floats:
    counts = np.asarray(count, np.float64)
    if n < 1 or not bool(((counts >= 0) & (counts <= n)).all()):
        raise ValueError(f"counts must lie in 0..n with n = {n} at least 1")
    levels = np.asarray(level, np.float64)
    highest = levels + np.asarray(floor, np.float64)
    if not bool(((levels > 0) & (highest >= levels) & (highest < 1)).all()):
        raise ValueError(f"level = {levels.tolist()}, with the floor {highest.tolist()}, is not in (0, 1)")
    return counts


def _ends(
    refused: Callable[[Floats], NDArray[np.bool_]], *, best: Floats, halvings: int = EXACT
) -> tuple[Floats, Floats]:
    """(lower, upper) ends, in the shape of `best`, of what is not refused: an interval that holds `best`.

    refused: maps candidates [2, S, …] for the lower and the upper end, S of them at a time. From outside the
    interval is cut into parts until so many halvings are done; what is returned is refused (or 0 or 1).
    """
    at_once = int(np.clip(np.log2(WIDTH / max(best.size, 1)), 1, 5))
    fractions = np.arange(1, 2**at_once).reshape(-1, *[1] * best.ndim) / 2**at_once
    outer = np.stack([np.zeros_like(best), np.ones_like(best)])
    inner = np.stack([best, best])
    for _ in range(-(-halvings // at_once)):
        parts = outer[:, None] + (inner - outer)[:, None] * fractions
        out = refused(parts)
        edges = np.concatenate([outer[:, None], parts, inner[:, None]], axis=1)
        last = np.where(out.all(axis=1), len(fractions), out.argmin(axis=1))[:, None]
        around = np.take_along_axis(edges, np.concatenate([last, last + 1], axis=1), axis=1)
        outer, inner = around[:, 0], around[:, 1]
    return outer[0], outer[1]
