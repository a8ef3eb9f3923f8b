"""From counts to a certificate: the terms of a claim, and the record that states what holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvit.errors import FvitError
from fvit.runtime.bounds import clopper_pearson
from fvit.runtime.certificates import (
    Aggregate,
    attention_radius,
    class_radius,
    linf_radius,
    lost_tokens,
    published_radius,
    renyi_divergence,
    token_radii,
)
from fvit.runtime.smoother import Tally

ORDER = 2.0
"""The Rényi order at which a record states its divergence; the bound is linear in the order."""


@dataclass(frozen=True)
class Terms:
    """What is to be claimed of an image, and at what price (the words of DESIGN section 2)."""

    sigma: float
    n0: int
    n: int
    alpha: float
    k: int
    beta: float
    aggregate: Aggregate
    seed: int

    def check(self, *, tokens: int) -> None:
        """Raise FvitError, before any work, for terms that mean nothing or can certify nothing."""
        if not self.sigma > 0:
            raise FvitError(f"σ = {self.sigma:g}: the noise level must be positive")
        if self.n0 < 1:
            raise FvitError(f"n0 = {self.n0}: the selection needs at least one copy")
        if not 0 < self.alpha < 1:
            raise FvitError(
                f"alpha = {self.alpha:g} is not in (0, 1): it is the probability of a false claim"
            )
        if not 0 <= self.seed < 2**64:
            raise FvitError(f"seed = {self.seed} is not in 0..2^64-1")
        if self.aggregate not in ("vote", "mean"):
            raise FvitError(f"aggregate '{self.aggregate}' is unknown: use vote or mean")
        if not 1 <= self.k <= tokens:
            raise FvitError(f"k = {self.k}: this model has {tokens} tokens, choose k between 1 and {tokens}")
        if not 0 < self.beta <= 1:
            raise FvitError(
                f"beta = {self.beta:g} is not in (0, 1]: it is the share of tokens that must survive"
            )
        k0 = lost_tokens(self.k, beta=self.beta)
        if k0 > tokens - self.k:
            raise FvitError(
                f"k = {self.k} and beta = {self.beta:g} break when {k0} tokens leave the top k, but "
                f"only {tokens - self.k} lie outside it: choose a smaller k or a larger beta"
            )
        if self.n < 1 or not self._can_certify(self.n, tokens=tokens):
            raise FvitError(
                f"n = {self.n} copies cannot certify any positive radius at alpha = {self.alpha:g}, "
                f"even if all agree: use n ≥ {self._smallest_n(tokens=tokens)}"
            )

    def _can_certify(self, n: int, *, tokens: int) -> bool:
        """Whether n copies that all agree (k tokens sharing all attribution) would certify both."""
        best = Tally(2, tokens, (self.k,))
        best.copies, best.counts[0], best.votes[0, : self.k] = n, n, n
        best.wealth.add_repeated(np.where(np.arange(tokens) < self.k, 1 / self.k, 0.0), n)
        lower, upper = token_bounds(best, self)
        radius = attention_radius(
            lower, upper, np.arange(self.k), beta=self.beta, sigma=self.sigma, aggregate=self.aggregate
        )
        return radius > 0 and class_bound(best, 0, self) > 0.5

    def _smallest_n(self, *, tokens: int) -> int:
        high = 1
        while not self._can_certify(high, tokens=tokens):
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._can_certify(middle, tokens=tokens) else (middle, high)
        return high


def class_bound(tally: Tally, index: int, terms: Terms) -> float:
    """Clopper-Pearson lower bound on the probability of class `index`, at half of alpha."""
    lower, _ = clopper_pearson(int(tally.counts[index]), tally.copies, alpha=terms.alpha / 2)
    return float(lower)


def token_bounds(tally: Tally, terms: Terms) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(lower, upper) [N] on the smoothed value of each token, each side at alpha/2 over N tokens."""
    alpha = terms.alpha / 2 / tally.tokens
    if terms.aggregate == "mean":
        return tally.wealth.bounds(alpha=alpha)
    return clopper_pearson(tally.votes[tally.sizes.index(terms.k)], tally.copies, alpha=alpha)


def smoothed_attention(tally: Tally, terms: Terms) -> NDArray[np.float64]:
    """[N] the aggregate itself: the share of copies voting for a token, or its mean attribution."""
    if terms.aggregate == "mean":
        return tally.sums / tally.copies
    return tally.votes[tally.sizes.index(terms.k)] / tally.copies


def top_tokens(values: NDArray[Any], k: int) -> NDArray[np.int64]:
    """The k largest, largest first, ties to the lower index: [k]."""
    return np.argsort(-values, kind="stable")[:k].astype(np.int64)


@dataclass(frozen=True, eq=False)
class ClassClaim:
    """Class `index` is the smoothed prediction everywhere within radius_l2, unless abstained."""

    index: int
    label: str
    count: int
    p_lower: float
    radius_l2: float
    radius_linf: float

    @property
    def abstained(self) -> bool:
        return self.radius_l2 <= 0


@dataclass(frozen=True, eq=False)
class AttentionClaim:
    """At least beta·k of `tokens` stay in the smoothed top k within radius_l2, unless abstained.

    tokens [k]: largest first. smoothed [N]: the aggregate over the n copies. token_radii [k]: the
    radius up to which each token on its own stays in the top k.
    """

    tokens: NDArray[np.int64]
    grid: tuple[int, int]
    k: int
    beta: float
    aggregate: Aggregate
    radius_l2: float
    published_renyi_radius: float
    smoothed: NDArray[np.float64]
    token_radii: NDArray[np.float64]

    @property
    def abstained(self) -> bool:
        return self.radius_l2 <= 0


@dataclass(frozen=True, eq=False)
class Certificate:
    """Everything claimed of one image; false with probability at most alpha over the noise drawn."""

    image: str
    sha256: str
    terms: Terms
    class_: ClassClaim
    attention: AttentionClaim
    engine: dict[str, str]
    bundle: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """One record of certificates.jsonl (DESIGN section 8)."""
        terms, of_class, attention = self.terms, self.class_, self.attention
        return {
            "image": self.image,
            "sha256": self.sha256,
            "sigma": terms.sigma,
            "alpha": terms.alpha,
            "seed": terms.seed,
            "n0": terms.n0,
            "n": terms.n,
            "copies_drawn": terms.n0 + terms.n,
            "class": {
                "index": of_class.index,
                "label": of_class.label,
                "count": of_class.count,
                "p_lower": of_class.p_lower,
                "radius_l2": of_class.radius_l2,
                "radius_linf": of_class.radius_linf,
                "abstained": of_class.abstained,
            },
            "attention": {
                "tokens": attention.tokens.tolist(),
                "grid": list(attention.grid),
                "k": attention.k,
                "beta": attention.beta,
                "aggregate": attention.aggregate,
                "radius_l2": attention.radius_l2,
                "abstained": attention.abstained,
                "published_renyi_radius": attention.published_renyi_radius,
            },
            "faithful": {
                "radius_l2": attention.radius_l2,
                "order": ORDER,
                "divergence": renyi_divergence(attention.radius_l2, order=ORDER, sigma=terms.sigma),
            },
            "engine": self.engine,
            "bundle": self.bundle,
            "seconds": self.seconds,
        }


def class_claim(
    selection: Tally, estimation: Tally, terms: Terms, *, labels: tuple[str, ...], pixels: int
) -> ClassClaim:
    """DESIGN 4.1: the class from the n0 copies, its radius from the n fresh ones."""
    index = int(selection.counts.argmax())
    p_lower = class_bound(estimation, index, terms)
    radius = class_radius(p_lower, sigma=terms.sigma)
    return ClassClaim(
        index=index,
        label=labels[index],
        count=int(estimation.counts[index]),
        p_lower=p_lower,
        radius_l2=radius,
        radius_linf=linf_radius(radius, pixels=pixels),
    )


def attention_claim(
    selection: Tally, estimation: Tally, terms: Terms, *, grid: tuple[int, int]
) -> AttentionClaim:
    """DESIGN 4.3: the tokens from the n0 copies, their radius from the n fresh ones.

    The published radius is the papers' plug-in figure on the mean attribution of the n copies.
    """
    tokens = top_tokens(smoothed_attention(selection, terms), terms.k)
    lower, upper = token_bounds(estimation, terms)
    mean = estimation.sums / estimation.sums.sum()
    return AttentionClaim(
        tokens=tokens,
        grid=grid,
        k=terms.k,
        beta=terms.beta,
        aggregate=terms.aggregate,
        radius_l2=attention_radius(
            lower, upper, tokens, beta=terms.beta, sigma=terms.sigma, aggregate=terms.aggregate
        ),
        published_renyi_radius=published_radius(mean, k=terms.k, beta=terms.beta, sigma=terms.sigma),
        smoothed=smoothed_attention(estimation, terms),
        token_radii=token_radii(lower, upper, tokens, sigma=terms.sigma),
    )
