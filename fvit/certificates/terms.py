"""What is to be claimed of an image, at what price, and whether it can be."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fvit.certificates.bounds import BETS, betting_bounds, fixed_bounds, mixture_bounds
from fvit.certificates.radii import (
    Aggregate,
    attention_radius,
    class_radius,
    leads_clearly,
    lost_tokens,
)
from fvit.certificates.tally import TOTAL
from fvit.errors import FvitError

Bound = Literal["clopper-pearson", "mixture"]

MOST_COPIES = 10**9
"""The most copies of one image."""

FIRST_LOOK = 24
"""Copies before the counts are first looked at; fewer certify next to nothing."""

FEWEST_THAT_AGREE = 2000
"""Copies of one class that tell it apart at every alpha that a float holds."""

LONGEST = 64
"""Bits of a whole number: the seed's."""

CLASS_SHARE = 0.1
"""The class's part of alpha: the explanation is what takes copies, and a tenth costs the class little."""

EVEN_SHARE = 0.25
"""The part of an explanation's alpha that its tokens share evenly; the rest goes by their values."""


@dataclass(frozen=True)
class Terms:
    """What is to be claimed of one image, at what price (the words of docs/method.md, section 1).

    n: copies, at the most. k: one explanation size or several, which share the copies and alpha; the
    first is the main one. seed: None where each image is to get its own from entropy. size: rows and
    columns of the copies. radius: None to estimate radii, or the ℓ2 radius that is to be decided (section
    7). refining: look on the way, each time at a certificate.
    """

    sigma: float
    n: int
    alpha: float
    k: tuple[int, ...]
    beta: float
    aggregate: Aggregate
    seed: int | None
    size: tuple[int, int]
    radius: float | None = None
    refining: bool = False

    @classmethod
    def of(
        cls, *, sigma: Any, n: Any, alpha: Any, k: Any, beta: Any, aggregate: Any, seed: Any, size: Any,
        radius: Any = None, refining: bool = False,
    ) -> Terms:  # fmt: skip
        """Terms from whatever numbers a caller has, NumPy's included; k a number or several.

        Raises FvitError for what is no number, or no whole one where copies or tokens are counted.
        """
        sizes = k if isinstance(k, Iterable) and not isinstance(k, str) else (k,)
        rows, columns = size
        return cls(
            sigma=_number(sigma, "sigma"),
            n=_whole(n, "n"),
            alpha=_number(alpha, "alpha"),
            k=tuple(_whole(each, "k") for each in sizes),
            beta=_number(beta, "beta"),
            aggregate=aggregate,
            seed=None if seed is None else _whole(seed, "seed"),
            size=(_whole(rows, "size"), _whole(columns, "size")),
            radius=None if radius is None else _number(radius, "radius"),
            refining=bool(refining),
        )

    @property
    def bound(self) -> Bound:
        """How counts are bounded: at the fixed n, or at every n at once."""
        return "clopper-pearson" if self.radius is None and not self.refining else "mixture"

    @property
    def pixels(self) -> int:
        """Values of one copy: 3HW."""
        return 3 * self.size[0] * self.size[1]

    @property
    def slack(self) -> float:
        """η, what the noise's thresholds, rounded to 2⁻⁶⁴, may add to the probability of a false claim.

        Fewer than 2·9.1·255σ + 4 thresholds lie between 2⁻⁶⁴ and 1 − 2⁻⁶⁴ (section 3).
        """
        return (18.2 * 255 * self.sigma + 4) * 2.0**-64 * self.n * self.pixels

    @property
    def class_level(self) -> float:
        """α_class: the hypothesis that a class has probability p is tested at level p times this."""
        return (self.alpha - self.slack) * CLASS_SHARE

    @property
    def attention_alpha(self) -> float:
        """α_att of one explanation size; the sizes share equally."""
        return (self.alpha - self.slack) * (1 - CLASS_SHARE) / len(self.k)

    def token_levels(self, k: int, *, tokens: int) -> dict[str, float]:
        """How bounds are asked of: the hypothesis that one of so many tokens has value p is tested at level
        `level`·p + `floor` (section 6.1)."""
        return {
            "level": self.attention_alpha * (1 - EVEN_SHARE) / k,
            "floor": self.attention_alpha * EVEN_SHARE / tokens,
        }

    @functools.cached_property
    def looks(self) -> tuple[int, ...]:
        """The numbers of copies at which the counts are looked at, ending at n."""
        looks, total = [], self.n if self.bound == "clopper-pearson" else FIRST_LOOK
        while total < self.n:
            looks.append(total)
            total += max(1, total // 25)
        return (*looks, self.n)

    def check(self, *, tokens: int) -> None:
        """Raise FvitError, before any work, for terms that mean nothing or can certify nothing."""
        if not 0 < self.sigma < math.inf:
            raise FvitError(f"σ = {self.sigma:g}: the noise level must be positive and finite")
        if not 0 < self.alpha < 1:
            raise FvitError(
                f"alpha = {self.alpha:g} is not in (0, 1): it is the probability of a false claim"
            )
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise FvitError(f"seed = {self.seed} is not in 0..2^64-1")
        if self.aggregate not in ("vote", "mean"):
            raise FvitError(f"aggregate '{self.aggregate}' is unknown: use vote or mean")
        if not 0 < self.beta <= 1:
            raise FvitError(
                f"beta = {self.beta:g} is not in (0, 1]: it is the share of tokens that must survive"
            )
        if self.radius is not None and not 0 < self.radius < math.inf:
            raise FvitError(f"radius = {self.radius:g}: the radius to decide must be positive and finite")
        if len(set(self.k)) != len(self.k) or not self.k:
            raise FvitError(f"k = {', '.join(map(str, self.k))}: give each explanation size once")
        for k in self.k:
            self._check_size(k, tokens=tokens)
        if not 1 <= self.n <= MOST_COPIES:
            raise FvitError(f"n = {self.n}: use 1 to {MOST_COPIES} copies")
        if reason := _hopeless(dataclasses.replace(self, seed=None), tokens=tokens):
            raise FvitError(reason)

    def check_predicts(self) -> None:
        """Raise FvitError where a class without a radius can never be told on these terms."""
        if not 1 <= self.n <= MOST_COPIES or not 0 < self.alpha < 1:
            raise FvitError(
                f"n = {self.n}, alpha = {self.alpha:g}: use 1 to {MOST_COPIES} copies and alpha in (0, 1)"
            )

        def decides(n: int) -> bool:
            level = self.alpha - dataclasses.replace(self, n=n).slack
            return level > 0 and leads_clearly(n, 0, alpha=level)

        if not decides(self.n):
            enough = next(filter(decides, range(1, FEWEST_THAT_AGREE)), None)
            raise FvitError(
                f"n = {self.n} copies never decide at alpha = {self.alpha:g}, even if all agree: "
                + (f"use n = {enough} or more" if enough and enough > self.n else "use a larger alpha")
            )

    def _check_size(self, k: int, *, tokens: int) -> None:
        if not 1 <= k <= tokens:
            raise FvitError(f"k = {k}: this model has {tokens} tokens, choose k between 1 and {tokens}")
        k0 = lost_tokens(k, beta=self.beta)
        if k0 > tokens - k:
            raise FvitError(
                f"k = {k} and beta = {self.beta:g} break when {k0} tokens leave the top k, but "
                f"only {tokens - k} lie outside it: choose a smaller k or a larger beta"
            )

    def _can_certify(self, *, tokens: int) -> bool:
        """Whether n copies that all agree (k tokens sharing all attribution) would certify both."""
        if self.slack >= self.alpha:
            return False
        goal = self.radius or 0.0
        bounds = fixed_bounds if self.bound == "clopper-pearson" else mixture_bounds
        if class_radius(float(bounds(self.n, self.n, level=self.class_level)[0]), sigma=self.sigma) <= goal:
            return False
        for k in self.k:
            if self.aggregate == "vote":
                votes = np.where(np.arange(tokens) < k, self.n, 0)
                lower, upper = bounds(votes, self.n, **self.token_levels(k, tokens=tokens))
            else:
                shares = np.where(np.arange(tokens) < k, 1 / k, 0.0)
                wealth = self.n * np.log1p(BETS[:, None] * shares)
                alpha = self.attention_alpha / TOTAL
                lower, upper = betting_bounds(wealth, self.n, mean=shares, alpha=alpha)
            radius = attention_radius(
                lower, upper, range(k), beta=self.beta, sigma=self.sigma, aggregate=self.aggregate
            )
            if radius <= goal:
                return False
        return True

    def _shortage(self, *, tokens: int) -> str:
        """What is wrong when even agreement of all n copies certifies nothing."""

        def enough(n: int) -> bool:
            return dataclasses.replace(self, n=n)._can_certify(tokens=tokens)

        if self.slack >= self.alpha:
            return (
                f"alpha = {self.alpha:g} is no more than the {self.slack:.1e} that rounding of the noise may "
                f"take from it at n = {self.n}: use a larger alpha"
                + (", or fewer copies" if self.slack / self.n * FIRST_LOOK < self.alpha else "")
            )
        what = "any positive radius" if self.radius is None else f"radius {self.radius:g}"
        said = f"n = {self.n} copies cannot certify {what} at alpha = {self.alpha:g}, even if all agree: "
        high = self.n
        while not enough(high):
            high *= 2
            if high > MOST_COPIES:
                return said + (
                    f"σ = {self.sigma:g} or alpha is too small for that; raise one of them"
                    + ("" if self.radius is None else ", or lower the radius")
                )
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return said + f"use n ≥ {high}"


@functools.lru_cache(maxsize=256)
def _hopeless(terms: Terms, *, tokens: int) -> str | None:
    """What is wrong with terms that certify nothing; kept, because a service is asked the same again."""
    return None if terms._can_certify(tokens=tokens) else terms._shortage(tokens=tokens)


def _number(value: Any, name: str) -> float:
    try:
        if isinstance(value, str):
            raise ValueError
        return float(value)
    except OverflowError as error:
        raise FvitError(f"{name} is larger than any float") from error
    except (TypeError, ValueError) as error:
        raise FvitError(f"{name} = {value} is no number") from error


def _whole(value: Any, name: str) -> int:
    try:
        whole = operator.index(value)
    except TypeError as error:
        raise FvitError(f"{name} = {value} is no whole number") from error
    if whole.bit_length() > LONGEST:
        raise FvitError(f"{name} is a number of {whole.bit_length()} bits: it may have {LONGEST}")
    return whole
