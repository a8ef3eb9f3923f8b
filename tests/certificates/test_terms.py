import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

from fvit.certificates.terms import MOST_COPIES, Terms
from fvit.errors import FvitError

GIVEN: dict[str, Any] = {
    "sigma": 0.25, "n": 1000, "alpha": 1e-3, "k": 10, "beta": 0.8, "aggregate": "vote", "seed": 0,
    "size": (64, 64),
}  # fmt: skip


def terms(**asked: Any) -> Terms:
    return Terms.of(**(GIVEN | asked))


def test_a_decision_looks_often_from_24_copies_on_and_at_n_last() -> None:
    looks = terms(n=10_000, radius=0.2).looks
    assert looks[0] == 24
    assert looks[-1] == 10_000
    assert all(1 <= later - sooner <= max(1, 0.04 * sooner) for sooner, later in pairwise(looks))
    assert looks == terms(n=10_000, refining=True, alpha=0.01, k=5).looks  # they depend on n alone
    assert terms(n=10, radius=0.2).looks == (10,)
    assert terms(n=10_000).looks == (10_000,)


def test_bounds_hold_at_every_n_where_a_run_may_stop_early() -> None:
    assert terms().bound == "clopper-pearson"
    assert terms(radius=0.1).bound == terms(refining=True).bound == "mixture"


@pytest.mark.parametrize("sigma", [0.01, 0.12, 0.25, 1.0, 5.0])
def test_slack_covers_the_rounding_of_every_threshold(sigma: float) -> None:
    """2⁻⁶⁴ for each integer whose probability of not being exceeded is not 0 or 1 to that precision."""
    j = np.arange(-20_000, 20_001)
    tails = np.minimum(ndtr((j + 0.5) / (255 * sigma)), ndtr(-(j + 0.5) / (255 * sigma)))
    thresholds = np.count_nonzero(tails >= 2.0**-64) + 2
    slack = terms(sigma=sigma).slack
    assert thresholds * 2.0**-64 * 1000 * 3 * 64 * 64 <= slack
    assert slack < 1.3 * (thresholds + 4) * 2.0**-64 * 1000 * 3 * 64 * 64


def test_alpha_is_split_between_class_and_explanations_after_the_slack() -> None:
    claim = terms(k=[5, 10, 20])
    for k in claim.k:  # tokens whose values sum to k, whatever they are
        levels = claim.token_levels(k, tokens=64)
        assert levels["level"] * k + levels["floor"] * 64 == pytest.approx(claim.attention_alpha)
    spent = claim.class_level + 3 * claim.attention_alpha
    assert spent == pytest.approx(claim.alpha - claim.slack)
    assert claim.class_level == pytest.approx((claim.alpha - claim.slack) / 10)


def test_numbers_of_every_kind_become_pythons_own() -> None:
    claim = terms(
        sigma=np.float32(0.25), n=np.int64(1000), alpha=np.float64(1e-3), k=np.array([10, 5], np.int32),
        beta=1, seed=np.uint64(2**63), size=np.array([64, 64]), radius=np.float16(0.5),
    )  # fmt: skip
    assert claim.k == (10, 5)
    for value in (claim.sigma, claim.alpha, claim.beta, claim.radius):
        assert type(value) is float
    for whole in (claim.n, claim.seed, *claim.k, *claim.size):
        assert type(whole) is int
    assert terms(k=np.int64(7)).k == (7,)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sigma": 0}, "σ = 0"),
        ({"sigma": math.nan}, "σ = nan"),
        ({"sigma": "a"}, "sigma = a is no number"),
        ({"alpha": 0}, "alpha = 0"),
        ({"alpha": 1}, "alpha = 1"),
        ({"alpha": math.nan}, "alpha = nan"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed = 1.5 is no whole number"),
        ({"aggregate": "median"}, "use vote or mean"),
        ({"beta": 0}, "beta"),
        ({"beta": 1.1}, "beta"),
        ({"radius": 0}, "radius"),
        ({"radius": math.inf}, "radius"),
        ({"k": []}, "each explanation size once"),
        ({"k": [5, 5]}, "each explanation size once"),
        ({"k": 0}, "k = 0"),
        ({"k": 65}, "choose k between 1 and 64"),
        ({"k": 63, "beta": 0.5}, "only 1 lie outside"),
        ({"k": "10"}, "no whole number"),
        ({"n": 0}, "n = 0"),
        ({"n": -5}, "n = -5"),
        ({"n": 10.5}, "n = 10.5 is no whole number"),
        ({"n": MOST_COPIES + 1}, f"use 1 to {MOST_COPIES} copies"),
        ({"n": 10**5000}, "n is a number of 16610 bits"),
        ({"radius": 10**5000}, "radius is larger than any float"),
        ({"alpha": 1e-300}, "alpha = 1e-300"),
        ({"alpha": 1e-300, "n": MOST_COPIES}, "alpha = 1e-300"),
        ({"alpha": 1e-9, "n": MOST_COPIES}, "fewer copies"),
        ({"radius": 5.0}, "lower the radius"),
    ],
)
def test_terms_that_mean_nothing_are_refused_in_one_line(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(FvitError) as caught:
        terms(**asked).check(tokens=64)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("aggregate", ["vote", "mean"])
@pytest.mark.parametrize("asked", [{}, {"radius": 0.1}, {"refining": True}, {"k": [5, 20]}, {"alpha": 1e-7}])
def test_too_few_copies_are_refused_with_how_many_are_enough(asked: dict[str, Any], aggregate: str) -> None:
    few = terms(n=3, aggregate=aggregate, **asked)
    with pytest.raises(FvitError, match="use n ≥") as caught:
        few.check(tokens=64)
    enough = int(str(caught.value).split("n ≥ ")[1])
    replace(few, n=enough).check(tokens=64)
    with pytest.raises(FvitError, match="use n ≥"):
        replace(few, n=enough - 1).check(tokens=64)


def test_alphas_from_a_half_to_a_millionth_can_be_met() -> None:
    for alpha in (0.5, 0.05, 1e-3, 1e-6):
        terms(alpha=alpha).check(tokens=64)
        terms(alpha=alpha, radius=0.2).check(tokens=196)
    terms(n=MOST_COPIES, alpha=0.01).check(tokens=64)
