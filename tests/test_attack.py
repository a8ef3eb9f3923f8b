"""The short form of benchmarks/attack.py."""

from pathlib import Path

import pytest

import fvit
from benchmarks.attack import Effort, adversary_of, attack
from fvit.export.attacking import Adversary

EFFORT = Effort(steps=4, copies=8, directions=2, judged=96)


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.attack.CONFIRMED", 400)


@pytest.fixture(scope="module")
def adversary(vit: fvit.FaithfulViT) -> Adversary:
    return adversary_of(vit, EFFORT)


def test_no_adversary_breaks_a_claim_inside_its_radius(
    vit: fvit.FaithfulViT, adversary: Adversary, samples: list[Path]
) -> None:
    attacked = 0
    for seed, sample in enumerate(samples[:3]):
        certificate = vit.certify(sample, n=200, seed=seed)
        outcome = attack(vit, adversary, vit.read(sample), certificate, scale=0.999, effort=EFFORT, seed=seed)
        assert not any(each.broken for each in outcome.values())
        attacked += len(outcome)
    assert attacked >= 10  # class, set, a token in and one out, of three images


def test_the_same_adversary_breaks_claims_far_outside(
    vit: fvit.FaithfulViT, adversary: Adversary, samples: list[Path]
) -> None:
    """Without this the test above could pass with an adversary that does nothing."""
    certificate = vit.certify(samples[0], n=200, seed=0)
    outcome = attack(vit, adversary, vit.read(samples[0]), certificate, scale=20, effort=EFFORT, seed=0)
    assert outcome["class"].broken or outcome["attention"].broken
    assert outcome["a token in"].broken or outcome["a token out"].broken
    assert all(each.least < each.before for each in outcome.values())
