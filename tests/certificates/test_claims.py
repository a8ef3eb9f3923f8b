"""Claims of whole certificates where the truth is known: how often is one false?"""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.worlds import World, world
from fvit.certificates.bounds import fixed_bounds
from fvit.certificates.claims import attention_claim, class_claim, token_bounds, top_tokens
from fvit.certificates.radii import attention_radius, class_radius, linf_radius, map_radii, token_radii
from fvit.certificates.tally import UNIT, Tally
from fvit.certificates.terms import Terms

ALPHA = 0.1


def terms(**asked: Any) -> Terms:
    given: dict[str, Any] = {
        "sigma": 0.25, "n": 400, "alpha": ALPHA, "k": 10, "beta": 0.8, "aggregate": "vote", "seed": 0,
        "size": (8, 8),
    }  # fmt: skip
    return Terms.of(**(given | asked))


def limit(runs: int, alpha: float = ALPHA) -> float:
    """What a rate of `alpha` stays within in so many runs, but for one in a thousand times."""
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize("aggregate", ["vote", "mean"])
@pytest.mark.parametrize("refining", [False, True])
def test_at_most_alpha_of_the_certificates_claim_too_much(aggregate: str, refining: bool) -> None:
    rng, runs, false, claims = np.random.default_rng(1), 80, 0, 0
    for _ in range(runs):
        asked = terms(aggregate=aggregate, refining=refining, k=(10, 4))
        truth = world(rng, k=(10, 4))
        tally = truth.tally(asked)
        truth.draw(rng, tally, asked.n)
        of_class = class_claim(tally, asked, labels=[""] * 10)
        explained = [attention_claim(tally, asked, k=k, grid=(8, 8)) for k in asked.k]
        false += truth.false_class(of_class, asked) or any(truth.false_attention(a, asked) for a in explained)
        claims += not all(a.abstained for a in explained)
    assert false / runs <= limit(runs)
    assert claims > runs / 20  # it is not right merely by saying nothing


@pytest.mark.parametrize(("classes", "tokens"), [(2, 64), (1000, 196)])
def test_all_intervals_hold_at_once_where_every_value_is_near_the_edge(classes: int, tokens: int) -> None:
    """The event that every claim follows from, at its tightest: many equal classes and tokens of which
    each copy has a few at random, with strong dependence between them."""
    rng, runs, missed = np.random.default_rng(2), 300, 0
    asked = terms(n=100, k=8)
    attributions = np.array([np.roll(np.arange(tokens, 0.0, -1), 8 * i) for i in range(tokens // 8)])
    truth = World(
        attributions=attributions / attributions.sum(axis=1, keepdims=True),
        labels=rng.integers(0, classes, len(attributions)),
        probabilities=np.full(len(attributions), 1 / len(attributions)),
        classes=classes,
        k=(8,),
    )
    for _ in range(runs):
        tally = truth.tally(asked)
        truth.draw(rng, tally, asked.n)
        lower, upper = token_bounds(tally, asked, k=8)
        of_classes = fixed_bounds(tally.counts, asked.n, level=asked.class_level)
        values = truth.token_values(asked, 8)
        wrong = (lower > values).any() or (upper < values).any()
        wrong |= (of_classes[0] > truth.class_values).any() or (of_classes[1] < truth.class_values).any()
        missed += bool(wrong)
    assert missed / runs <= limit(runs)


@pytest.mark.parametrize(("tokens", "alpha"), [(64, 0.1), (196, 0.1), (64, 0.01)])
@pytest.mark.parametrize("refining", [False, True])
def test_no_more_than_alpha_of_the_maps_are_false_where_tokens_lie_at_one_half(
    tokens: int, alpha: float, refining: bool
) -> None:
    """Twenty tokens of which a copy has ten or the ten others, each as often as its opposite but for a
    hundredth: sides are as hard to tell, and as dependent, as they can be. Any token at any look counts."""
    rng, runs, k = np.random.default_rng(tokens), 120 if refining else 400, 10
    asked = terms(n=400, alpha=alpha, refining=refining)
    false = certain = 0
    for _ in range(runs):
        halves = rng.permuted(np.tile(np.arange(2 * k), (15, 1)), axis=1) < k
        votes = np.zeros((30, tokens))
        votes[:15, : 2 * k], votes[15:, : 2 * k] = halves, ~halves
        leaning = rng.uniform(0.49, 0.51, 15) / 15
        truth = World(
            votes / k, np.arange(30) % 2, np.concatenate([leaning, 1 / 15 - leaning]), classes=2, k=(k,)
        )
        tally, wrong = truth.tally(asked), False
        for look in (asked.looks[::20] + asked.looks[-1:]) if refining else asked.looks:
            truth.draw(rng, tally, look - tally.copies)
            claim = attention_claim(tally, asked, k=k, grid=(1, tokens))
            wrong |= truth.false_map(claim, asked)
        false += wrong
        certain += int(np.count_nonzero(claim.map()))
    assert false / runs <= limit(runs, alpha)
    assert certain / runs >= tokens - 2 * k  # of the others all sides are certain


def test_every_certificate_of_a_refinement_is_true_at_once() -> None:
    """Each is checked at every look, in 30 worlds; and the event that they follow from."""
    rng, runs, false, missed = np.random.default_rng(3), 30, 0, 0
    asked = terms(n=300, refining=True)
    for _ in range(runs):
        truth = world(rng)
        tally = truth.tally(asked)
        wrong = outside = False
        for look in asked.looks:
            truth.draw(rng, tally, look - tally.copies)
            outside |= truth.misses(tally, asked)
            if look in asked.looks[::6]:
                wrong |= truth.false_class(class_claim(tally, asked, labels=[""] * 10), asked)
                wrong |= truth.false_attention(attention_claim(tally, asked, k=10, grid=(8, 8)), asked)
        false, missed = false + wrong, missed + outside
        assert not wrong or outside  # no claim is false unless an interval is
    assert false <= missed
    assert missed / runs <= limit(runs)


def test_a_claim_is_the_formula_at_the_bounds() -> None:
    rng, asked = np.random.default_rng(4), terms()
    truth = world(rng)
    tally = truth.tally(asked)
    truth.draw(rng, tally, asked.n)
    of_class = class_claim(tally, asked, labels=list("abcdefghij"))
    lower, _ = fixed_bounds(tally.counts.max(), asked.n, level=asked.class_level)
    assert of_class.label == "abcdefghij"[of_class.index]
    assert of_class.radius_l2 == class_radius(float(lower), sigma=0.25)
    assert of_class.radius_linf == linf_radius(of_class.radius_l2, pixels=3 * 8 * 8)
    assert sum(of_class.counts.values()) == asked.n
    assert min(of_class.counts.values()) > 0
    explained = attention_claim(tally, asked, k=10, grid=(8, 8))
    low, high = token_bounds(tally, asked, k=10)
    radius = attention_radius(low, high, explained.tokens, beta=0.8, sigma=0.25, aggregate="vote")
    assert explained.radius_l2 == radius
    assert dict(explained.curve)[0.8] == radius
    assert list(explained.token_radii) == token_radii(low, high, explained.tokens, sigma=0.25).tolist()
    assert explained.map_radii == pytest.approx(map_radii(low, high, sigma=0.25), abs=1e-4)
    assert explained.smoothed.tolist() == (tally.votes[0] / asked.n).tolist()
    assert explained.tokens == tuple(top_tokens(tally.votes[0], 10))


def test_a_larger_share_of_agreeing_copies_never_gives_a_smaller_radius() -> None:
    radii = []
    for agreeing in range(300, 401, 10):
        tally = Tally(2, 16, (4,))
        tally.copies = 400
        tally.counts[:] = agreeing, 400 - agreeing
        tally.votes[0, :4], tally.votes[0, 4:8] = agreeing, 400 - agreeing
        tally.sums[:] = UNIT * 400 // 16
        explained = attention_claim(tally, terms(k=4), k=4, grid=(4, 4))
        radii.append((class_claim(tally, terms(k=4), labels=["a", "b"]).radius_l2, explained.radius_l2))
    assert radii == sorted(radii)
    assert min(radii[-1]) > 0


def test_smoothed_attention_of_means_is_the_mean_attribution() -> None:
    rng, asked = np.random.default_rng(5), terms(aggregate="mean")
    truth = world(rng)
    tally = truth.tally(asked)
    truth.draw(rng, tally, asked.n)
    explained = attention_claim(tally, asked, k=10, grid=(8, 8))
    assert explained.smoothed == pytest.approx(tally.mean)
    assert explained.tokens == tuple(top_tokens(tally.mean, 10))
