"""Coverage by simulation, with the truth known: how often does a certificate claim too much?"""

import dataclasses
import math
from itertools import pairwise

import pytest

from benchmarks.coverage import ALPHA, RUNS, certificates, decisions, published, terms
from fvit.certificates.radii import Aggregate

SLACK = 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)


@pytest.mark.parametrize("aggregate", ["vote", "mean"])
def test_at_most_alpha_of_the_certificates_claim_too_much(aggregate: Aggregate) -> None:
    outcome = certificates(aggregate, seed=1)
    assert outcome.failures / RUNS <= ALPHA + SLACK
    assert outcome.claims > RUNS / 10  # it is not right merely by saying nothing


@pytest.mark.parametrize("aggregate", ["vote", "mean"])
def test_at_most_alpha_of_the_decisions_are_false_however_early_they_stop(aggregate: Aggregate) -> None:
    assert len(terms(aggregate, n=1000, radius=0.1).checkpoints) > 3
    outcome = decisions(aggregate, seed=2)
    assert outcome.failures / RUNS <= ALPHA + SLACK
    assert outcome.claims > RUNS / 20


def test_the_published_plug_in_radius_has_no_confidence() -> None:
    """Computed from estimated means it exceeds its own value at the exact means every other time."""
    above_itself, _ = published(seed=3, runs=300)
    assert above_itself > 0.3


def test_checkpoints_double_fill_whole_batches_and_end_at_n() -> None:
    claim = dataclasses.replace(terms("vote", n=10_000, radius=0.2), n0=100)
    looks = claim.checkpoints
    assert looks[-1] == 10_000
    assert all((100 + look) % 32 == 0 for look in looks[:-1])
    assert all(2 * one <= other <= 2 * one + 32 for one, other in pairwise(looks[:-1]))
    assert terms("vote").checkpoints == (400,)
