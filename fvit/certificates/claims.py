"""From a tally to what is claimed of the class and of an explanation (docs/method.md, sections 4 to 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fvit.certificates.bounds import betting_bounds, fixed_bounds, mixture_bounds
from fvit.certificates.literature import published_radius
from fvit.certificates.radii import (
    Aggregate,
    attention_radii,
    class_radius,
    linf_radius,
    lost_tokens,
    map_radii,
    shortened,
    token_radii,
)
from fvit.certificates.tally import TOTAL, UNIT, Tally
from fvit.certificates.terms import MOST_COPIES, Terms
from fvit.errors import FvitError

Floats = NDArray[np.float64]

Count = Annotated[int, Field(ge=0, le=MOST_COPIES)]
Seen = Annotated[int, Field(ge=1, le=MOST_COPIES)]
Side = Annotated[int, Field(gt=0, lt=2**16)]
Index = Annotated[int, Field(ge=0, lt=2**31)]
Radius = Annotated[float, Field(ge=0)]
Row = Field(strict=False)  # a tuple that is read from a list; what is in it stays strict


class Part(BaseModel):
    """A part of a record: nothing is missing, unknown, converted, infinite or changed later."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        serialize_by_alias=True,
    )


class ClassClaim(Part):
    """Class `index` is the smoothed prediction everywhere nearer than radius_l2, unless abstained.

    counts: copies of every class that any copy had, by its index. radius_linf: the ℓ∞ ball within.
    """

    index: Index
    label: str
    counts: Annotated[
        dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")], Seen], Field(min_length=1)
    ]
    p_lower: Annotated[float, Field(ge=0, lt=1)]
    radius_l2: Radius
    radius_linf: Radius
    abstained: bool


class AttentionClaim(Part):
    """At least beta·k of `tokens` stay in the smoothed top k nearer than radius_l2, unless abstained.

    tokens [k]: largest aggregate first. grid: rows and columns of tokens. votes [N]: copies that have a
    token among their k largest. sums [N]: of the copies' attributions, in units of 2⁻³⁰. token_radii
    [k]: the radius up to which each token on its own stays in the top k. map_radii [N]: for votes, the radius
    up to which each token keeps its side of the map, above 0 where it is in, below where it is out, 0 where
    it is open. curve: for k0 = 1, 2, … the pair (largest β that k0 lost tokens break, its radius). All of it
    holds at once.
    published_renyi_radius: the papers' plug-in figure on the mean attribution, for comparison only.
    """

    tokens: Annotated[tuple[Index, ...], Row]
    grid: Annotated[tuple[Side, Side], Row]
    k: Annotated[int, Field(ge=1, lt=2**31)]
    beta: Annotated[float, Field(gt=0, le=1)]
    aggregate: Aggregate
    votes: Annotated[tuple[Count, ...], Row]
    sums: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**62)], ...], Row]
    radius_l2: Radius
    abstained: bool
    token_radii: Annotated[tuple[Radius, ...], Row]
    map_radii: Annotated[tuple[float, ...], Row] | None = None
    curve: Annotated[
        tuple[Annotated[tuple[float, Radius], Row], ...], Field(strict=False, alias="radius_by_beta")
    ]
    published_renyi_radius: Radius

    @property
    def copies(self) -> int:
        """The copies behind it: each casts k votes."""
        return sum(self.votes) // self.k

    @property
    def smoothed(self) -> Floats:
        """[N] the aggregate: the share of copies voting for a token, or its mean attribution."""
        if self.aggregate == "vote":
            return np.asarray(self.votes) / self.copies
        return np.asarray(self.sums) / (self.copies * UNIT)

    def map(self, radius: float = 0.0) -> NDArray[np.int8]:
        """int8 [rows, columns], the certified map at an ℓ2 radius (docs/method.md, section 5.3): 1 where a
        token is certified to be in, −1 where it is certified to be out, everywhere nearer than the radius;
        0 elsewhere. At 0: everything that is certified at any radius.

        Raises FvitError for means, which have no map, and for a radius below 0 or none.
        """
        if self.map_radii is None:
            raise FvitError("means have no map, because a side is a majority of votes: certify votes")
        if not radius >= 0:
            raise FvitError(f"radius = {radius:g}: the map at a radius needs one of 0 or more")
        radii = np.asarray(self.map_radii)
        sides = np.where(np.abs(radii) >= radius, np.sign(radii), 0)
        return sides.astype(np.int8).reshape(self.grid)


def class_claim(tally: Tally, terms: Terms, *, labels: Sequence[str]) -> ClassClaim:
    """Section 4: the class with the most copies, and its radius."""
    index = int(tally.counts.argmax())
    lower, _ = count_bounds(tally.counts[index], tally, terms, level=terms.class_level)
    radius = class_radius(float(lower), sigma=terms.sigma)
    return ClassClaim(
        index=index,
        label=labels[index],
        counts={str(seen): int(tally.counts[seen]) for seen in np.flatnonzero(tally.counts)},
        p_lower=float(lower),
        radius_l2=radius,
        radius_linf=linf_radius(radius, pixels=terms.pixels),
        abstained=radius <= 0,
    )


def attention_claim(tally: Tally, terms: Terms, *, k: int, grid: tuple[int, int]) -> AttentionClaim:
    """Section 5: the k tokens with the largest aggregate, and every radius that the bounds give."""
    tokens = top_tokens(aggregate_of(tally, terms, k=k), k)
    lower, upper = token_bounds(tally, terms, k=k)
    radii = attention_radii(lower, upper, tokens, sigma=terms.sigma, aggregate=terms.aggregate)
    radius = float(radii[lost_tokens(k, beta=terms.beta) - 1])
    mean = tally.sums / tally.sums.sum()
    sides = None
    if terms.aggregate == "vote":
        sides = shortened(map_radii(lower, upper, sigma=terms.sigma), sigma=terms.sigma)
    return AttentionClaim(
        tokens=tuple(tokens.tolist()),
        grid=grid,
        k=k,
        beta=terms.beta,
        aggregate=terms.aggregate,
        votes=tuple(tally.votes[tally.sizes.index(k)].tolist()),
        sums=tuple(tally.sums.tolist()),
        radius_l2=radius,
        abstained=radius <= 0,
        token_radii=tuple(token_radii(lower, upper, tokens, sigma=terms.sigma).tolist()),
        map_radii=None if sides is None else tuple(sides.tolist()),
        # Where too few tokens lie outside for k0 of them to leave, no radius is finite or needed.
        curve=tuple(
            ((k - k0 + 1) / k, float(each)) for k0, each in enumerate(radii, start=1) if np.isfinite(each)
        ),
        published_renyi_radius=published_radius(mean, k=k, beta=terms.beta, sigma=terms.sigma),
    )


def count_bounds(
    counts: NDArray[np.int64], tally: Tally, terms: Terms, *, level: float, floor: float = 0.0
) -> tuple[Floats, Floats]:
    """(lower, upper) on values with these counts, by the terms' bound; p at level·p + floor (section 6.1)."""
    bounds = fixed_bounds if terms.bound == "clopper-pearson" else mixture_bounds
    return bounds(counts, tally.copies, level=level, floor=floor)


def token_bounds(tally: Tally, terms: Terms, *, k: int) -> tuple[Floats, Floats]:
    """(lower, upper) [N] on the smoothed value of each token; all of them hold at once."""
    if terms.aggregate == "vote":
        votes, places = np.unique(tally.votes[tally.sizes.index(k)], return_inverse=True)
        lower, upper = count_bounds(votes, tally, terms, **terms.token_levels(k, tokens=tally.tokens))
        return lower[places], upper[places]
    # Shares of TOTAL sum to at most 1; a unit a copy is for what a device's logarithm errs by.
    wealth = (tally.wealth - tally.copies) / UNIT
    alpha = terms.attention_alpha / TOTAL
    lower, upper = betting_bounds(wealth, tally.copies, mean=np.minimum(tally.mean, 1.0), alpha=alpha)
    return lower / TOTAL, upper / TOTAL


def aggregate_of(tally: Tally, terms: Terms, *, k: int) -> NDArray[np.int64]:
    """[N] the aggregate that ranks the tokens, as the integers that it is counted in."""
    return tally.sums if terms.aggregate == "mean" else tally.votes[tally.sizes.index(k)]


def top_tokens(values: NDArray[np.generic], k: int) -> NDArray[np.int64]:
    """The k largest, largest first, ties to the lower index: [k]."""
    return np.argsort(-np.asarray(values), kind="stable")[:k].astype(np.int64)
