"""Worlds whose truth is known, for measuring how often certificates are false.

A copy's outcome is one of a few prototypes (a class and an attribution) with known probabilities, so that
smoothed votes, means and class probabilities are exact sums. Few prototypes make tokens and classes depend
on each other as strongly as they can.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, xlog1py, xlogy

from fvit.certificates.bounds import BETS
from fvit.certificates.claims import AttentionClaim, ClassClaim
from fvit.certificates.decisions import Decision
from fvit.certificates.radii import (
    attainable_radius,
    attention_radii,
    class_radius,
    map_radii,
    token_radii,
)
from fvit.certificates.tally import TOTAL, UNIT, Tally
from fvit.certificates.terms import Terms

Floats = NDArray[np.float64]
TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class World:
    """attributions [M, N], labels [M] and probabilities [M] of the prototypes; k: explanation sizes."""

    attributions: Floats
    labels: NDArray[np.int64]
    probabilities: Floats
    classes: int
    k: tuple[int, ...]

    @cached_property
    def votes(self) -> NDArray[np.int64]:
        """[K, M, N] of each prototype, for each explanation size."""
        ranked = np.argsort(-self.attributions, axis=1, kind="stable")
        votes = np.zeros((len(self.k), *self.attributions.shape), np.int64)
        for row, k in enumerate(self.k):
            np.put_along_axis(votes[row], ranked[:, :k], 1, axis=1)
        return votes

    @cached_property
    def sums(self) -> NDArray[np.int64]:
        return np.rint(self.attributions * UNIT).astype(np.int64)

    @cached_property
    def wealth(self) -> NDArray[np.int64]:
        factors = np.log1p(BETS[:, None, None] * np.minimum(self.attributions, 1.0))
        return np.floor(factors * UNIT).astype(np.int64)

    @cached_property
    def class_values(self) -> Floats:
        """[C] the smoothed probability of each class."""
        counted = np.bincount(self.labels, weights=self.probabilities, minlength=self.classes)
        return counted.astype(np.float64)

    def token_values(self, terms: Terms, k: int) -> Floats:
        """[N] the smoothed votes, or the mean attribution in shares of TOTAL."""
        if terms.aggregate == "mean":
            return self.probabilities @ self.attributions / TOTAL
        return self.probabilities @ self.votes[self.k.index(k)]

    def tally(self, terms: Terms) -> Tally:
        return Tally(self.classes, self.attributions.shape[1], self.k, betting=terms.aggregate == "mean")

    def draw(self, rng: np.random.Generator, tally: Tally, copies: int) -> None:
        """Count so many more copies into the tally, as Tally.add would."""
        times = rng.multinomial(copies, self.probabilities)
        tally.copies += copies
        np.add.at(tally.counts, self.labels, times)
        for row, votes in enumerate(self.votes):
            tally.votes[row] += times @ votes
        tally.sums += times @ self.sums
        if tally.betting:
            tally.wealth += np.einsum("m,bmn->bn", times, self.wealth)

    def false_class(self, claim: ClassClaim, terms: Terms) -> bool:
        """Whether the class's radius exceeds that at its exact probability."""
        true = class_radius(float(self.class_values[claim.index]), sigma=terms.sigma)
        return claim.radius_l2 > true + TOLERANCE

    def false_attention(self, claim: AttentionClaim, terms: Terms) -> bool:
        """Whether any radius of the explanation, its tokens or its other β exceeds that of its formula at
        the exact values, which is the most that it may claim."""
        values = self.token_values(terms, claim.k)
        radii = attention_radii(values, values, claim.tokens, sigma=terms.sigma, aggregate=terms.aggregate)
        tokens = token_radii(values, values, claim.tokens, sigma=terms.sigma)
        claimed = np.array([radius for _, radius in claim.curve])
        return bool(
            (claimed > radii[: len(claimed)] + TOLERANCE).any()
            or (np.array(claim.token_radii) > tokens + TOLERANCE).any()
            or (claim.map_radii is not None and self.false_map(claim, terms))
        )

    def false_map(self, claim: AttentionClaim, terms: Terms) -> bool:
        """Whether any token is claimed to be on the side where it is not, or to keep its own further than it
        does by its exact value."""
        values, claimed = self.token_values(terms, claim.k), np.array(claim.map_radii)
        true = map_radii(values, values, sigma=terms.sigma)
        return bool((np.abs(claimed) > np.sign(claimed) * true + TOLERANCE).any())

    def false_decision(self, decision: Decision, tally: Tally, terms: Terms) -> bool:
        """Whether an answer contradicts the exact values: "certified" for the class or tokens that led, "not
        certified" for any."""
        if decision.class_ == decision.attention == "undecided":
            return False
        k, r = terms.k[0], decision.radius
        index = int(tally.counts.argmax())
        leading = class_radius(float(self.class_values[index]), sigma=terms.sigma)
        best = class_radius(float(self.class_values.max()), sigma=terms.sigma)
        values = self.token_values(terms, k)
        ranks = tally.sums if terms.aggregate == "mean" else tally.votes[0]
        tokens = np.argsort(-ranks, kind="stable")[:k]
        radii = attention_radii(values, values, tokens, sigma=terms.sigma, aggregate=terms.aggregate)
        k0 = next(lost for lost in range(1, k + 1) if k - lost < terms.beta * k - 1e-9)
        most = attainable_radius(
            values, values, k=k, beta=terms.beta, sigma=terms.sigma, aggregate=terms.aggregate
        )
        return (
            (decision.class_ == "certified" and leading < r - TOLERANCE)
            or (decision.class_ == "not certified" and best >= r + TOLERANCE)
            or (decision.attention == "certified" and radii[k0 - 1] < r - TOLERANCE)
            or (decision.attention == "not certified" and most >= r + TOLERANCE)
        )

    def misses(self, tally: Tally, terms: Terms) -> bool:
        """Whether any interval of the mixture leaves out its exact value: without that no claim of
        a decision or a refinement is false. Votes only; by the defining inequality: a look costs little."""
        if self._refused(tally.counts, tally.copies, self.class_values, level=terms.class_level):
            return True
        return any(
            self._refused(
                votes, tally.copies, self.token_values(terms, k), **terms.token_levels(k, tokens=tally.tokens)
            )
            for k, votes in zip(self.k, tally.votes, strict=True)
        )

    @staticmethod
    def _refused(
        counts: NDArray[np.int64], n: int, values: Floats, *, level: float, floor: float = 0.0
    ) -> bool:
        p, c = np.clip(values, 1e-300, 1), np.asarray(counts)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = betaln(c + 2 * p, n - c + 2 * (1 - p)) - betaln(2 * p, 2 * (1 - p))
            ratio -= xlogy(c, p) + xlog1py(n - c, -p)
        return bool((ratio + np.log(level * p + floor) >= 0)[(values > 0) & (values < 1)].any())


def world(
    rng: np.random.Generator,
    *,
    classes: int = 10,
    tokens: int = 64,
    k: tuple[int, ...] = (10,),
    prototypes: int = 40,
) -> World:
    """A random world in which a class leads by little or much and the ends of the top k are near ties."""
    lean = np.exp(-np.arange(tokens) / rng.uniform(0.5 * k[0], 3 * k[0]))
    attributions = rng.dirichlet(lean * rng.uniform(5, 200) + 0.01, prototypes)
    leader = rng.uniform(0.45, 0.999)
    labels = np.where(rng.uniform(size=prototypes) < leader, 0, rng.integers(1, classes, prototypes))
    return World(
        attributions=attributions,
        labels=labels,
        probabilities=rng.dirichlet(np.full(prototypes, rng.uniform(0.2, 5))),
        classes=classes,
        k=k,
    )
