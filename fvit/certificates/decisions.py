"""Does it hold at a radius? Answered at any look, at every n at once (docs/method.md, section 7)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fvit.certificates.bounds import EXACT, Floats, mixture_bounds
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

ROUGH = 10
"""Halvings for bounds that most looks, which decide nothing, can be told from."""


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
    of_class, of_attention = (
        _means_answer(tally, terms, terms.radius)
        if terms.aggregate == "mean"
        else _votes_answer(tally, terms, terms.radius)
    )
    answers = {of_class, of_attention}
    answer: Answer = "certified" if answers == {"certified"} else "undecided"
    if "not certified" in answers:
        answer = "not certified"
    return Decision(radius=terms.radius, class_=of_class, attention=of_attention, answer=answer)


Answers = tuple[Answer, Answer]
"""Of the class, and of the main explanation."""


def _votes_answer(tally: Tally, terms: Terms, radius: float) -> Answers:
    """Ends grow with the count, and one pair of tokens decides: the best of the k0 weakest inside against
    the weakest of the k0 strongest outside.

    Bounds within 2^−ROUGH come first. What their ends answer, and the same ends moved in by that much, exact
    ones answer too, which lie between; they are computed where these two differ.
    """
    k = terms.k[0]
    k0 = lost_tokens(k, beta=terms.beta)
    inside, outside = np.sort(tally.votes[0])[::-1][[k - k0, k + k0 - 1]]
    level, floor = terms.token_levels(k, tokens=tally.tokens).values()

    def answers(lower: Floats, upper: Floats) -> Answers:
        gaps = probit_gap(np.array([lower[1], upper[1]]), np.array([upper[2], lower[2]]))
        least, most = (terms.sigma / 2 * gaps).tolist()
        return _of_class(lower[0], upper[0], terms.sigma, radius), _answer(least, most, radius)

    def bounds(halvings: int) -> tuple[Floats, Floats]:
        return mixture_bounds(
            [tally.counts.max(), inside, outside], tally.copies,
            level=[terms.class_level, level, level], floor=[0.0, floor, floor], halvings=halvings,
        )  # fmt: skip

    lower, upper = bounds(ROUGH)
    furthest, nearest = answers(lower, upper), answers(lower + 0.5**ROUGH, upper - 0.5**ROUGH)
    return furthest if furthest == nearest else answers(*bounds(EXACT))


def _means_answer(tally: Tally, terms: Terms, radius: float) -> Answers:
    """As _votes_answer, where every token may count: what is certified, and what no choice of tokens
    exceeds."""
    k, sigma, beta = terms.k[0], terms.sigma, terms.beta
    p_lower, p_upper = mixture_bounds(tally.counts.max(), tally.copies, level=terms.class_level)
    lower, upper = token_bounds(tally, terms, k=k)
    tokens = top_tokens(aggregate_of(tally, terms, k=k), k)
    least = attention_radius(lower, upper, tokens, beta=beta, sigma=sigma, aggregate="mean")
    most = attainable_radius(lower, upper, k=k, beta=beta, sigma=sigma, aggregate="mean")
    return _of_class(float(p_lower), float(p_upper), sigma, radius), _answer(least, most, radius)


def _of_class(lower: float, upper: float, sigma: float, radius: float) -> Answer:
    return _answer(class_radius(lower, sigma=sigma), class_radius(upper, sigma=sigma), radius)


def _answer(least: float, most: float, radius: float) -> Answer:
    if least >= radius:
        return "certified"
    return "not certified" if most < radius else "undecided"
