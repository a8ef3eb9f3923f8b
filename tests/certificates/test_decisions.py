import math
from typing import Any

import numpy as np
import pytest

from benchmarks.worlds import world
from fvit.certificates import decisions
from fvit.certificates.bounds import EXACT, mixture_bounds
from fvit.certificates.claims import attention_claim, class_claim, token_bounds
from fvit.certificates.decisions import decide
from fvit.certificates.radii import attainable_radius, class_radius
from fvit.certificates.terms import Terms

ALPHA = 0.1


def terms(**asked: Any) -> Terms:
    given: dict[str, Any] = {
        "sigma": 0.25, "n": 300, "alpha": ALPHA, "k": 10, "beta": 0.8, "aggregate": "vote", "seed": 0,
        "size": (8, 8), "radius": 0.05,
    }  # fmt: skip
    return Terms.of(**(given | asked))


@pytest.mark.parametrize(("aggregate", "runs"), [("vote", 40), ("mean", 8)])
def test_at_most_alpha_of_the_decisions_are_ever_false(aggregate: str, runs: int) -> None:
    """Whether one would stop there or not: the answer at every look is held against the truth."""
    rng, false, answered = np.random.default_rng(1), 0, set()
    for _ in range(runs):
        truth = world(rng)
        asked = terms(aggregate=aggregate, radius=float(rng.choice([0.01, 0.05, 0.2])))
        tally, wrong = truth.tally(asked), False
        for look in asked.looks:
            truth.draw(rng, tally, look - tally.copies)
            decision = decide(tally, asked)
            wrong |= truth.false_decision(decision, tally, asked)
            answered.add(decision.answer)
        false += wrong
    assert false / runs <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert answered == {"certified", "not certified", "undecided"} or aggregate == "mean"


@pytest.mark.parametrize("aggregate", ["vote", "mean"])
def test_a_decision_says_what_the_radii_beside_it_say(aggregate: str) -> None:
    """And what no choice of tokens attains, from the bounds on all tokens."""
    rng, seen = np.random.default_rng(2), set()
    for _ in range(40):
        truth = world(rng)
        asked = terms(aggregate=aggregate, radius=float(rng.uniform(0.001, 0.4)))
        tally = truth.tally(asked)
        truth.draw(rng, tally, int(rng.choice([30, 100, 300])))
        decision = decide(tally, asked)
        of_class = class_claim(tally, asked, labels=[""] * 10)
        explained = attention_claim(tally, asked, k=10, grid=(8, 8))
        most = attainable_radius(
            *token_bounds(tally, asked, k=10), k=10, beta=0.8, sigma=0.25, aggregate=asked.aggregate
        )
        assert (decision.class_ == "certified") == (of_class.radius_l2 >= decision.radius)
        assert (decision.attention == "certified") == (explained.radius_l2 >= decision.radius)
        assert (decision.attention == "not certified") == (most < decision.radius)
        parts = {decision.class_, decision.attention}
        expected = "undecided" if "undecided" in parts else "certified"
        assert decision.answer == ("not certified" if "not certified" in parts else expected)
        seen.add(decision.answer)
    assert len(seen) > 1


def test_what_rough_bounds_answer_is_what_exact_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """At radii all around those that are just certified or just refuted."""
    rng, seen = np.random.default_rng(4), set()
    for _ in range(60):
        truth = world(rng)
        tally = truth.tally(terms())
        truth.draw(rng, tally, int(rng.choice([30, 100, 300])))
        claim = attention_claim(tally, terms(), k=10, grid=(8, 8))
        most = attainable_radius(
            *token_bounds(tally, terms(), k=10), k=10, beta=0.8, sigma=0.25, aggregate="vote"
        )
        ends = mixture_bounds(tally.counts.max(), tally.copies, level=terms().class_level)
        of_class = [class_radius(float(end), sigma=0.25) for end in ends]
        edges = [edge for edge in (claim.radius_l2, most, *of_class) if 0 < edge < math.inf]
        for radius in (
            edge * (1 + off) for edge in edges for off in (-0.1, -1e-3, -1e-9, 0, 1e-9, 1e-3, 0.1)
        ):
            asked = terms(radius=radius)
            with monkeypatch.context() as patch:
                patch.setattr(decisions, "ROUGH", EXACT)
                exact = decide(tally, asked)
            assert decide(tally, asked) == exact
            seen.add((exact.class_, exact.attention))
    for place in range(2):
        assert {each[place] for each in seen} == {"certified", "not certified", "undecided"}


def test_a_class_without_a_majority_is_not_certified_at_any_radius() -> None:
    rng = np.random.default_rng(3)
    truth = world(rng)
    asked = terms(radius=0.001, n=10_000)
    tally = truth.tally(asked)
    truth.draw(rng, tally, 10_000)
    tally.counts[:] = 1000
    decision = decide(tally, asked)
    assert decision.class_ == decision.answer == "not certified"


def test_terms_without_a_radius_have_nothing_to_decide() -> None:
    asked = terms(radius=None)
    with pytest.raises(ValueError, match="no radius"):
        decide(world(np.random.default_rng(0)).tally(asked), asked)
