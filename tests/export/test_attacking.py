"""Gradients through the embedded models, and what has to be had for them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from numpy.typing import NDArray

from fvit.certificates.claims import top_tokens
from fvit.demo import models
from fvit.errors import FvitError
from fvit.export.attacking import Adversary, Norm
from fvit.export.rebuilding import rebuild_denoiser
from fvit.runtime.bundle import Origin, open_bundle
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.plain import classify_plain
from tests.export.test_tune import changed

Floats = NDArray[np.float32]


def adversary(bundle: Path, *, steps: int, copies: int = 2) -> Adversary:
    return Adversary.of(
        open_bundle(bundle), weights=None, denoiser=None, adm_flags=None, steps=steps, copies=copies
    )


@pytest.fixture(scope="module")
def attacker(demo_bundle: Path) -> Adversary:
    return adversary(demo_bundle, steps=6)


@pytest.fixture
def clean(vit: FaithfulViT, samples: list[Path]) -> Floats:
    return np.divide(vit.read(samples[0]).pixels, 255, dtype=np.float32)


def attacked(
    attacker: Adversary,
    clean: Floats,
    *,
    index: int | None,
    tokens: list[int],
    norm: Norm,
    radius: float,
    sigma: float | None = None,
    seed: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> Floats:
    return attacker.attack(
        clean, index=index, tokens=tokens, norm=norm, radius=radius, sigma=sigma,
        draw=np.random.default_rng(seed), stopped=stopped,
    )  # fmt: skip


def margin(vit: FaithfulViT, pixels: Floats, index: int) -> float:
    """By how much a class's logit leads, as the engine computes it."""
    logits = classify_plain(vit, pixels[None])[0][0]
    return float(logits[index] - np.delete(logits, index).max())


@pytest.mark.parametrize(("norm", "radius"), [("linf", 6 / 255), ("l2", 1.0)])
def test_an_attack_on_the_plain_model_lowers_its_margin(
    vit: FaithfulViT, attacker: Adversary, clean: Floats, norm: Norm, radius: float
) -> None:
    """More than any of ten random ways of the same length, and it stays in the ball and in [0,1]."""
    index = int(classify_plain(vit, clean[None])[0][0].argmax())
    moved = attacked(attacker, clean, index=index, tokens=[], norm=norm, radius=radius)
    assert moved.dtype == np.float32 and moved.min() >= 0 and moved.max() <= 1
    delta = (moved - clean).astype(np.float64)
    size = np.abs(delta).max() if norm == "linf" else np.linalg.norm(delta)
    assert 0.9 * radius < size <= radius * (1 + 1e-5)
    draw = np.random.default_rng(1)
    random = [
        np.clip(clean + draw.permuted(delta.ravel()).reshape(delta.shape), 0, 1).astype(np.float32)
        for _ in range(10)
    ]
    least = min(margin(vit, each, index) for each in random)
    assert margin(vit, moved, index) < least - 1 < margin(vit, clean, index)


def test_an_attack_on_the_explanation_takes_attribution_from_its_first_tokens(
    vit: FaithfulViT, attacker: Adversary, clean: Floats
) -> None:
    before = classify_plain(vit, clean[None])[1][0]
    tokens = top_tokens(before, 10).tolist()
    moved = attacked(attacker, clean, index=None, tokens=tokens, norm="linf", radius=8 / 255)
    after = classify_plain(vit, moved[None])[1][0]
    assert after[tokens].sum() < 0.8 * before[tokens].sum()
    assert len(set(top_tokens(after, 10).tolist()) & set(tokens)) < 9


def test_an_attack_on_the_smoothed_model_follows_its_copies(
    vit: FaithfulViT, demo_bundle: Path, clean: Floats
) -> None:
    """On copies of other noise, through the engines, the class has less probability than a random step
    leaves; the same draw gives the same to the bit."""
    attacker = adversary(demo_bundle, steps=3)
    noise = np.random.default_rng(5).standard_normal((8, *clean.shape), dtype=np.float32)
    sigma, radius = 0.5, 6.0

    def probability(pixels: Floats) -> NDArray[np.float64]:
        logits, _ = vit.pipeline(pixels + np.float32(sigma) * noise, sigma=np.full(8, sigma, np.float32))
        exact = torch.softmax(torch.from_numpy(logits).double(), dim=1)
        return np.asarray(exact.mean(dim=0).numpy())

    index = int(probability(clean).argmax())
    moved = attacked(attacker, clean, index=index, tokens=[], norm="l2", radius=radius, sigma=sigma)
    way = np.random.default_rng(6).standard_normal(clean.shape)
    random = np.clip(clean + radius * way / np.linalg.norm(way), 0, 1).astype(np.float32)
    assert probability(moved)[index] < probability(random)[index] - 0.1
    again = attacked(attacker, clean, index=index, tokens=[], norm="l2", radius=radius, sigma=sigma)
    assert (moved == again).all()


def test_a_denoiser_comes_from_where_it_was_exported_from_and_from_nowhere_else(
    teacher_bundle: Path, tmp_path: Path
) -> None:
    named = open_bundle(changed(teacher_bundle, tmp_path / "named", denoiser="mine"))
    with pytest.raises(FvitError, match="give with --denoiser what mine was exported from"):
        rebuild_denoiser(named, place=None, adm_flags=None)
    rebuild_denoiser(named, place=str(models.DENOISER), adm_flags=None)
    student = changed(teacher_bundle, tmp_path / "student", denoiser="mine", teacher=Origin(name="theirs"))
    with pytest.raises(FvitError, match="is a student, .* attack the bundle of its teacher, theirs"):
        rebuild_denoiser(open_bundle(student), place=None, adm_flags=None)
    torch.manual_seed(0)
    other = tmp_path / "other"
    DDPMPipeline(unet=models.new_denoiser(), scheduler=models.new_scheduler()).save_pretrained(other)
    with pytest.raises(FvitError, match=r"was not exported from .*other \(images differ by"):
        rebuild_denoiser(named, place=str(other), adm_flags=None)
    with pytest.raises(FvitError, match="--adm-flags describe a checkpoint file"):
        rebuild_denoiser(named, place=str(other), adm_flags="--num_heads 4")
