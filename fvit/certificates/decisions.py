"""Does it hold at a radius? Answered at any look, at every n at once (docs/method.md, section 7)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fvit.certificates.bounds import mixture_bounds
from fvit.certificates.claims import Part, aggregate_of, token_bounds, top_tokens
from fvit.certificates.radii import (
    attainable_radius,
    attention_radius,
    class_radius,
    lost_tokens,
    probit_gap,
)
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms

Answer = Literal["certified", "not certified", "undecided"]


class Decision(Part):
    """Does it hold at the ℓ2 radius: for the class, for the main explanation, for both together.

    "not certified": with the exact values the radius by the formula would fall short, for every choice
    of class or tokens. "undecided": the copies do not tell.
    """

    radius: Annotated[float, Field(gt=0)]
    class_: Annotated[Answer, Field(alias="class")]
    attention: Answer
    answer: Answer


def decide(tally: Tally, terms: Terms) -> Decision:
    """What the copies so far say. Raises ValueError for terms without a radius to decide."""
    if terms.radius is None:
        raise ValueError("these terms have no radius to decide")
    lower, upper, least, most = (
        _means_bounded(tally, terms) if terms.aggregate == "mean" else _votes_bounded(tally, terms)
    )
    of_class = _answer(
        class_radius(lower, sigma=terms.sigma), class_radius(upper, sigma=terms.sigma), terms.radius
    )
    of_attention = _answer(least, most, terms.radius)
    answers = {of_class, of_attention}
    answer: Answer = "certified" if answers == {"certified"} else "undecided"
    if "not certified" in answers:
        answer = "not certified"
    return Decision(radius=terms.radius, class_=of_class, attention=of_attention, answer=answer)


def _votes_bounded(tally: Tally, terms: Terms) -> tuple[float, float, float, float]:
    """Bounds on the leading class, and then on the radius of the main explanation: what is certified, and
    what no choice of tokens exceeds.

    Ends grow with the count, and one pair of tokens decides: the best of the k0 weakest inside against
    the weakest of the k0 strongest outside.
    """
    k = terms.k[0]
    k0 = lost_tokens(k, beta=terms.beta)
    inside, outside = np.sort(tally.votes[0])[::-1][[k - k0, k + k0 - 1]]
    level, floor = terms.token_levels(k, tokens=tally.tokens).values()
    lower, upper = mixture_bounds(
        [tally.counts.max(), inside, outside], tally.copies,
        level=[terms.class_level, level, level], floor=[0.0, floor, floor],
    )  # fmt: skip
    gaps = probit_gap(np.array([lower[1], upper[1]]), np.array([upper[2], lower[2]]))
    least, most = (terms.sigma / 2 * gaps).tolist()
    return float(lower[0]), float(upper[0]), least, most


def _means_bounded(tally: Tally, terms: Terms) -> tuple[float, float, float, float]:
    """As _votes_bounded, where every token may count."""
    k, sigma, beta = terms.k[0], terms.sigma, terms.beta
    p_lower, p_upper = mixture_bounds(tally.counts.max(), tally.copies, level=terms.class_level)
    lower, upper = token_bounds(tally, terms, k=k)
    tokens = top_tokens(aggregate_of(tally, terms, k=k), k)
    least = attention_radius(lower, upper, tokens, beta=beta, sigma=sigma, aggregate="mean")
    most = attainable_radius(lower, upper, k=k, beta=beta, sigma=sigma, aggregate="mean")
    return float(p_lower), float(p_upper), least, most


def _answer(least: float, most: float, radius: float) -> Answer:
    if least >= radius:
        return "certified"
    return "not certified" if most < radius else "undecided"
