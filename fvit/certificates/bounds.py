"""Confidence bounds on smoothed values from copies (DESIGN section 4.4). Pure functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

Floats = NDArray[np.float64]


def clopper_pearson(count: ArrayLike, n: int, *, alpha: float) -> tuple[Floats, Floats]:
    """Exact bounds on a binomial proportion: (lower, upper), each one-sided at level alpha.

    count: successes among n copies, a number or an array; the bounds have its shape. Used one at a
    time each fails with probability at most alpha, both together at most 2·alpha.
    Raises ValueError where a count is outside [0, n] or alpha outside (0, 1).
    """
    successes = np.asarray(count, np.float64)
    if n < 1 or bool(((successes < 0) | (successes > n)).any()):
        raise ValueError(f"counts must lie in 0..n with n = {n} at least 1")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha = {alpha:g} is not in (0, 1)")
    # betaincinv is undefined at the ends, where the bound is 0 or 1; keep it away from them.
    inner = np.clip(successes, 1, None)
    outer = np.clip(successes, None, n - 1)
    lower = np.where(successes > 0, betaincinv(inner, n - inner + 1, alpha), 0.0)
    upper = np.where(successes < n, betaincinv(outer + 1, n - outer, 1 - alpha), 1.0)
    return lower, upper


class LogWealth:
    """Betting bounds on the mean of [0,1] variables, from accumulators of constant size.

    Waudby-Smith & Ramdas 2024 bet against each candidate mean m; with a bet that is fixed before
    the copies are seen, the wealth factors: for x in [0,1] with mean μ and any λ > 0,
    Π (1 + λx_i)/(1 + λμ) is a non-negative martingale of mean 1 (and so is Π (1 − θx_i)/(1 − θμ),
    0 < θ < 1, from above). So Σ ln(1 + λx_i) for a grid of λ is all that has to be kept, and the
    average wealth over the grid, which needs no tuning, is a martingale again: by Ville's
    inequality the bounds hold at every n at once, so a run may stop whenever it likes.
    """

    LOWER = np.geomspace(0.05, 200.0, 12)
    UPPER = 1 - np.geomspace(0.98, 0.002, 10)
    BETS = np.concatenate([LOWER, -UPPER])

    def __init__(self, variables: int) -> None:
        self.copies = 0
        self.logarithms = np.zeros((len(self.BETS), variables))  # Σ ln(1 + bet·x), a row for each of BETS

    def add(self, values: Floats) -> None:
        """values [B, variables] in [0,1] (float rounding beyond 1 is cut)."""
        for copy in np.minimum(values, 1.0):
            self.add_repeated(copy, 1)

    def add_repeated(self, copy: Floats, times: int) -> None:
        """The same values [variables] `times` times over."""
        self.copies += times
        self.logarithms += times * np.log1p(self.BETS[:, None] * copy)

    def merge(self, other: LogWealth) -> None:
        """Add what was kept of further copies."""
        self.copies += other.copies
        self.logarithms += other.logarithms

    def bounds(self, *, alpha: float) -> tuple[Floats, Floats]:
        """(lower, upper) [variables], each one-sided at level alpha, valid at every n at once."""

        from_below, from_above = np.split(self.logarithms, [len(self.LOWER)])

        def wealth_below(mean: Floats) -> Floats:
            each = from_below - self.copies * np.log1p(self.LOWER[:, None] * mean)
            return np.asarray(np.logaddexp.reduce(each, axis=0) - np.log(len(self.LOWER)))

        def wealth_above(mean: Floats) -> Floats:
            each = from_above - self.copies * np.log1p(-self.UPPER[:, None] * mean)
            return np.asarray(np.logaddexp.reduce(each, axis=0) - np.log(len(self.UPPER)))

        # A mean is refused once its wealth reaches 1/alpha. Against low means wealth falls as the
        # mean grows, against high ones it rises, so each side has one edge: found by bisection,
        # and each bound is the end that errs outwards.
        edge = -np.log(alpha)
        variables = self.logarithms.shape[1]
        lower, _ = _bisect(lambda mean: wealth_below(mean) >= edge, variables)
        _, upper = _bisect(lambda mean: wealth_above(mean) < edge, variables)
        return lower, upper


def _bisect(holds: Callable[[Floats], NDArray[np.bool_]], variables: int) -> tuple[Floats, Floats]:
    """The two ends, 2⁻⁵⁰ apart, of where `holds` turns from true to false as the mean grows."""
    low, high = np.zeros(variables), np.ones(variables)
    for _ in range(50):
        middle = (low + high) / 2
        true = holds(middle)
        low, high = np.where(true, middle, low), np.where(true, high, middle)
    return low, high
