"""From counts to a certificate: the terms of a claim, and the record that states what holds."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.bounds import clopper_pearson
from fvit.certificates.literature import published_radius
from fvit.certificates.radii import (
    Aggregate,
    attention_radii,
    attention_radius,
    class_radius,
    linf_radius,
    lost_tokens,
    renyi_divergence,
    token_radii,
)
from fvit.certificates.tally import Tally
from fvit.errors import FvitError

ORDER = 2.0
"""The Rényi order at which a record states its divergence; the bound is linear in the order."""

FIRST_LOOK = 32
"""Estimation copies before a decision first looks at its counts; fewer certify next to nothing."""

MOST_COPIES = 10**9

Answer = Literal["certified", "not certified", "undecided"]


@dataclass(frozen=True)
class Terms:
    """What is to be claimed of an image, and at what price (the words of DESIGN section 2).

    k: one explanation size or several, which share the copies and alpha; the first is the main one.
    radius: None to estimate radii from n copies, or the ℓ2 radius that is to be decided (DESIGN 4.6)
    with at most n copies. batch: only where a decision pauses depends on it.
    """

    sigma: float
    n0: int
    n: int
    alpha: float
    k: tuple[int, ...]
    beta: float
    aggregate: Aggregate
    seed: int
    radius: float | None = None
    batch: int = 32

    @functools.cached_property
    def checkpoints(self) -> tuple[int, ...]:
        """The numbers of estimation copies at which the counts are looked at, ending at n.

        A decision looks after every doubling; each stretch fills whole batches (with n0 in front).
        """
        if self.radius is None:
            return (self.n,)
        looks, total = [], -(-(self.n0 + FIRST_LOOK) // self.batch) * self.batch - self.n0
        while total < self.n:
            looks.append(total)
            total = -(-(self.n0 + 2 * total) // self.batch) * self.batch - self.n0
        return (*looks, self.n)

    @property
    def sides(self) -> int:
        """Sides of the bounds on one value that claims rest on: "not certified" needs the other one."""
        return 1 if self.radius is None else 2

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
        if not 0 < self.beta <= 1:
            raise FvitError(
                f"beta = {self.beta:g} is not in (0, 1]: it is the share of tokens that must survive"
            )
        if self.radius is not None and not 0 < self.radius < float("inf"):
            raise FvitError(f"radius = {self.radius:g}: the radius to decide must be positive and finite")
        if len(set(self.k)) != len(self.k) or not self.k:
            raise FvitError(f"k = {', '.join(map(str, self.k))}: give each explanation size once")
        for k in self.k:
            self._check_size(k, tokens=tokens)
        if self.n < 1 or not self._can_certify(tokens=tokens):
            raise FvitError(self._hopeless(tokens=tokens))

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
        """Whether copies that all agree (k tokens sharing all attribution) would certify both."""
        goal = self.radius or 0.0
        for k in self.k:
            best = Tally(2, tokens, self.k)
            best.copies, best.counts[0], best.votes[:, :k] = self.n, self.n, self.n
            best.wealth.add_repeated(np.where(np.arange(tokens) < k, 1 / k, 0.0), self.n)
            lower, upper = token_bounds(best, self, k=k)
            radius = attention_radius(
                lower, upper, np.arange(k), beta=self.beta, sigma=self.sigma, aggregate=self.aggregate
            )
            if radius <= goal or class_radius(class_bounds(best, 0, self)[0], sigma=self.sigma) <= goal:
                return False
        return True

    def _hopeless(self, *, tokens: int) -> str:
        """What is wrong when even agreement of all n copies certifies nothing."""

        def enough(n: int) -> bool:
            return dataclasses.replace(self, n=n)._can_certify(tokens=tokens)

        what = "any positive radius" if self.radius is None else f"radius {self.radius:g}"
        said = f"n = {self.n} copies cannot certify {what} at alpha = {self.alpha:g}, even if all agree: "
        high = max(1, self.n)
        while not enough(high):
            high *= 2
            if high > MOST_COPIES:
                return said + f"σ = {self.sigma:g} is too small for that; raise σ or lower the radius"
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return said + f"use n ≥ {high}"


def class_bounds(tally: Tally, index: int, terms: Terms) -> tuple[float, float]:
    """Clopper-Pearson (lower, upper) on the probability of class `index`.

    Half of alpha, shared by the looks that a decision may take, and by its two sides.
    """
    alpha = terms.alpha / 2 / len(terms.checkpoints) / terms.sides
    lower, upper = clopper_pearson(int(tally.counts[index]), tally.copies, alpha=alpha)
    return float(lower), float(upper)


def token_bounds(tally: Tally, terms: Terms, *, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(lower, upper) [N] on the smoothed value of each token, simultaneous on the sides that count.

    Half of alpha, shared by the N tokens and by the sides. Votes are bounded anew for each
    explanation size and at each look. The bound on means holds at every n at once and serves all
    sizes, but with several of them a token may be inside one and outside another: two sides.
    """
    alpha = terms.alpha / 2 / tally.tokens
    if terms.aggregate == "mean":
        return tally.wealth.bounds(alpha=alpha / (2 if len(terms.k) > 1 else terms.sides))
    votes = tally.votes[tally.sizes.index(k)]
    shared = len(terms.k) * len(terms.checkpoints) * terms.sides
    return clopper_pearson(votes, tally.copies, alpha=alpha / shared)


def smoothed_attention(tally: Tally, terms: Terms, *, k: int) -> NDArray[np.float64]:
    """[N] the aggregate itself: the share of copies voting for a token, or its mean attribution."""
    if terms.aggregate == "mean":
        return tally.sums / tally.copies
    return tally.votes[tally.sizes.index(k)] / tally.copies


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
    radius up to which each token on its own stays in the top k. curve: for k0 = 1, 2, … the pair
    (largest β that k0 lost tokens break, its radius); all of it holds at once.
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
    curve: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens.tolist(),
            "grid": list(self.grid),
            "k": self.k,
            "beta": self.beta,
            "aggregate": self.aggregate,
            "radius_l2": self.radius_l2,
            "abstained": self.abstained,
            "published_renyi_radius": self.published_renyi_radius,
        }

    @property
    def abstained(self) -> bool:
        return self.radius_l2 <= 0


@dataclass(frozen=True)
class Decision:
    """Does it hold at `radius`: for the class, for the main explanation, for both together."""

    radius: float
    class_: Answer
    attention: Answer

    @property
    def answer(self) -> Answer:
        parts = {self.class_, self.attention}
        if "not certified" in parts:
            return "not certified"
        return "undecided" if "undecided" in parts else "certified"


@dataclass(frozen=True, eq=False)
class Certificate:
    """Everything claimed of one image; false with probability at most alpha over the noise drawn.

    attentions: one claim for each explanation size, the main one first. decision: None unless a
    radius was to be decided.
    """

    image: str
    sha256: str
    terms: Terms
    copies_drawn: int
    class_: ClassClaim
    attentions: tuple[AttentionClaim, ...]
    decision: Decision | None
    engine: dict[str, str]
    bundle: str
    seconds: float

    @property
    def attention(self) -> AttentionClaim:
        """The claim on the main explanation."""
        return self.attentions[0]

    def to_dict(self) -> dict[str, Any]:
        """One record of certificates.jsonl (DESIGN section 8).

        With several explanation sizes it has `explanations` too, one for each size with its curve
        of radius against beta; with a radius to decide it has `decision`.
        """
        terms, of_class, attention = self.terms, self.class_, self.attention
        record: dict[str, Any] = {
            "image": self.image,
            "sha256": self.sha256,
            "sigma": terms.sigma,
            "alpha": terms.alpha,
            "seed": terms.seed,
            "n0": terms.n0,
            "n": terms.n,
            "copies_drawn": self.copies_drawn,
            "class": {
                "index": of_class.index,
                "label": of_class.label,
                "count": of_class.count,
                "p_lower": of_class.p_lower,
                "radius_l2": of_class.radius_l2,
                "radius_linf": of_class.radius_linf,
                "abstained": of_class.abstained,
            },
            "attention": attention.to_dict(),
            "faithful": {
                "radius_l2": attention.radius_l2,
                "order": ORDER,
                "divergence": renyi_divergence(attention.radius_l2, order=ORDER, sigma=terms.sigma),
            },
            "engine": self.engine,
            "bundle": self.bundle,
            "seconds": self.seconds,
        }
        if len(self.attentions) > 1:
            record["explanations"] = [
                claim.to_dict() | {"radius_by_beta": [list(pair) for pair in claim.curve]}
                for claim in self.attentions
            ]
        if self.decision is not None:
            record["decision"] = {
                "radius": self.decision.radius,
                "class": self.decision.class_,
                "attention": self.decision.attention,
                "answer": self.decision.answer,
                "batch": terms.batch,
            }
        return record


def terms_of(record: dict[str, Any]) -> Terms:
    """The terms that a record was made on. Raises KeyError where it is no record."""
    decision = record.get("decision", {"radius": None})
    explanations = record.get("explanations", [record["attention"]])
    return Terms(
        sigma=record["sigma"],
        n0=record["n0"],
        n=record["n"],
        alpha=record["alpha"],
        k=tuple(explanation["k"] for explanation in explanations),
        beta=record["attention"]["beta"],
        aggregate=record["attention"]["aggregate"],
        seed=record["seed"],
        radius=decision["radius"],
        batch=decision.get("batch", Terms.batch),
    )


def class_claim(
    selection: Tally, estimation: Tally, terms: Terms, *, labels: tuple[str, ...], pixels: int
) -> ClassClaim:
    """DESIGN 4.1: the class from the n0 copies, its radius from the n fresh ones."""
    index = int(selection.counts.argmax())
    p_lower, _ = class_bounds(estimation, index, terms)
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
    selection: Tally, estimation: Tally, terms: Terms, *, k: int, grid: tuple[int, int]
) -> AttentionClaim:
    """DESIGN 4.3: the k tokens from the n0 copies, their radius from the fresh ones.

    The published radius is the papers' plug-in figure on the mean attribution of the fresh copies.
    """
    tokens = top_tokens(smoothed_attention(selection, terms, k=k), k)
    lower, upper = token_bounds(estimation, terms, k=k)
    radii = attention_radii(lower, upper, tokens, sigma=terms.sigma, aggregate=terms.aggregate)
    mean = estimation.sums / estimation.sums.sum()
    return AttentionClaim(
        tokens=tokens,
        grid=grid,
        k=k,
        beta=terms.beta,
        aggregate=terms.aggregate,
        radius_l2=float(radii[lost_tokens(k, beta=terms.beta) - 1]),
        published_renyi_radius=published_radius(mean, k=k, beta=terms.beta, sigma=terms.sigma),
        smoothed=smoothed_attention(estimation, terms, k=k),
        token_radii=token_radii(lower, upper, tokens, sigma=terms.sigma),
        # Where too few tokens lie outside for k0 of them to leave, no radius is finite or needed.
        curve=tuple(((k - k0 + 1) / k, float(r)) for k0, r in enumerate(radii, start=1) if np.isfinite(r)),
    )


def decide(selection: Tally, estimation: Tally, terms: Terms, *, radius: float) -> Decision:
    """DESIGN 4.6 at one look: certified where the lower bounds reach the radius, not certified
    where even the bounds on the other side do not, undecided between.
    """
    k = terms.k[0]
    index = int(selection.counts.argmax())
    tokens = top_tokens(smoothed_attention(selection, terms, k=k), k)
    p_lower, p_upper = class_bounds(estimation, index, terms)
    lower, upper = token_bounds(estimation, terms, k=k)

    def attention(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
        return attention_radius(
            low, high, tokens, beta=terms.beta, sigma=terms.sigma, aggregate=terms.aggregate
        )

    return Decision(
        radius=radius,
        class_=_answer(
            class_radius(p_lower, sigma=terms.sigma), class_radius(p_upper, sigma=terms.sigma), radius
        ),
        attention=_answer(attention(lower, upper), attention(upper, lower), radius),
    )


def _answer(least: float, most: float, radius: float) -> Answer:
    if least >= radius:
        return "certified"
    return "not certified" if most < radius else "undecided"
