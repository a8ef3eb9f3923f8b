"""When copies of another image refute a certificate: against counts that one can judge by eye, and how often
they refute what is true."""

import numpy as np
import pytest

from fvit.certificates.record import Certificate
from fvit.certificates.refuting import doubted, refuted
from fvit.certificates.tally import Tally
from tests.evaluation.cases import certificate

CHANCE = 1e-3


def claimed() -> Certificate:
    """Class 0 up to 0.3; at least 2 of tokens 0 and 1 up to 0.2; sides of all four tokens."""
    return certificate(map_radii=(0.4, 0.1, -0.1, -0.4))


def seen(*, counts: tuple[int, ...], votes: tuple[int, ...]) -> Tally:
    tally = Tally(3, 4, (2,))
    tally.counts[:], tally.votes[0], tally.copies = counts, votes, sum(counts)
    return tally


AGREEING = {"counts": (90, 10, 0), "votes": (95, 90, 10, 5)}


def test_copies_that_agree_refute_nothing() -> None:
    assert refuted(claimed(), seen(**AGREEING), distance=0.0, chance=CHANCE) == []


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        ({"counts": (20, 80, 0)}, ["class"]),
        ({"counts": (45, 55, 0)}, []),  # another class leads, as it well may at one half
        ({"votes": (95, 10, 90, 5)}, ["attention", "token 1", "token 2"]),
        ({"votes": (95, 48, 52, 5)}, []),
        ({"votes": (20, 95, 5, 80)}, ["attention", "token 0", "token 3"]),
    ],
)
def test_copies_that_say_otherwise_refute_what_they_are_of(
    changed: dict[str, tuple[int, ...]], broken: list[str]
) -> None:
    assert refuted(claimed(), seen(**AGREEING | changed), distance=0.0, chance=CHANCE) == broken


@pytest.mark.parametrize(
    ("changed", "doubtful"),
    [
        ({}, []),
        ({"counts": (49, 51, 0)}, []),
        ({"counts": (40, 60, 0)}, ["class"]),  # which alone refutes nothing
        ({"votes": (95, 40, 60, 5)}, ["attention", "token 1", "token 2"]),
    ],
)
def test_what_is_worth_further_copies_is_doubted_long_before_it_is_refuted(
    changed: dict[str, tuple[int, ...]], doubtful: list[str]
) -> None:
    tally = seen(**AGREEING | changed)
    assert doubted(claimed(), tally, distance=0.0) == doubtful
    assert refuted(claimed(), tally, distance=0.0, chance=CHANCE) == []


def test_votes_say_nothing_of_means() -> None:
    of_means = claimed().attention.model_copy(update={"aggregate": "mean"})
    certificate = claimed().model_copy(update={"attention": of_means})
    with pytest.raises(ValueError, match="say nothing of a certificate of the mean"):
        refuted(certificate, seen(**AGREEING), distance=0.0, chance=CHANCE)


def test_nothing_is_claimed_from_its_radius_on() -> None:
    wrong = seen(counts=(5, 95, 0), votes=(5, 10, 90, 95))
    found = [
        refuted(claimed(), wrong, distance=distance, chance=CHANCE) for distance in (0.05, 0.15, 0.25, 0.4)
    ]
    assert found == [
        ["class", "attention", "token 0", "token 1", "token 2", "token 3"],
        ["class", "attention", "token 0", "token 3"],
        ["class", "token 0", "token 3"],
        [],
    ]


def test_what_is_true_by_a_hair_is_refuted_no_oftener_than_by_chance() -> None:
    draw, chance, worlds = np.random.default_rng(0), 0.1, 1000
    wrong = 0
    for first, second in draw.binomial(200, 0.5, (worlds, 2)):
        # Token 0 in, token 2 out, token 1 as good as 2, and class 0: all at one half.
        tally = seen(counts=(first, 200 - first, 0), votes=(second, 100, 200 - second, 0))
        wrong += bool(refuted(claimed(), tally, distance=0.0, chance=chance))
    assert 0 < wrong <= chance * worlds
