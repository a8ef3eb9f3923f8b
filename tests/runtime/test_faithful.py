"""fvit.load, predict and certify: what a service imports."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fvit


def test_predict_names_the_digit_and_shows_where_it_looked(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    right = 0
    for sample in samples:
        prediction = vit.predict(sample, sigma=0.25, n=32)
        assert prediction.counts.sum() == 32
        assert prediction.attention.shape == (8, 8)
        assert prediction.attention.sum() == pytest.approx(1, abs=1e-5)
        right += prediction.label == sample.stem[-1]
    assert right >= len(samples) - 2


def test_predict_abstains_where_copies_disagree(vit: fvit.FaithfulViT) -> None:
    """Noise alone is no digit: at a strong σ its copies do not agree."""
    noise = np.random.default_rng(0).random((3, 64, 64))
    predictions = [vit.predict(noise, sigma=2.0, n=16, alpha=1e-6, seed=seed) for seed in range(3)]
    assert any(prediction.index is None and prediction.label is None for prediction in predictions)


def test_predict_refuses_what_means_nothing(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    for arguments in ({"n": 0}, {"alpha": 0.0}, {"alpha": 1.0}, {"sigma": 1e6}):
        with pytest.raises(fvit.FvitError):
            vit.predict(samples[0], **arguments)


def test_certify_takes_any_form_of_the_image(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    image = Image.open(samples[0]).convert("RGB")
    eight_bit = np.asarray(image)
    forms = (
        samples[0],
        str(samples[0]),
        image,
        eight_bit,
        eight_bit.transpose(2, 0, 1).astype(np.float32) / 255,
    )
    claims = [vit.certify(form, n0=8, n=40) for form in forms]
    assert len({(c.class_.index, c.class_.count, tuple(c.attention.tokens)) for c in claims}) == 1


def test_threads_may_share_a_vit(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    def certified(sample: Path) -> dict[str, object]:
        record = vit.certify(sample, n0=8, n=56).to_dict()
        return {key: value for key, value in record.items() if key != "seconds"}

    alone = [certified(sample) for sample in samples[:4]]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(certified, samples[:4])) == alone


def test_both_aggregates_certify_and_carry_the_published_figure(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    for aggregate in ("vote", "mean"):
        claim = vit.certify(samples[1], n0=50, n=1000, aggregate=aggregate).attention
        assert len(claim.tokens) == 10
        assert claim.published_renyi_radius > 0
        assert aggregate == "mean" or claim.radius_l2 > 0


def test_a_decision_agrees_with_fixed_n(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    fixed = vit.certify(samples[1], n0=100, n=1000)
    reach = min(fixed.class_.radius_l2, fixed.attention.radius_l2)
    assert reach > 0
    near = vit.certify(samples[1], n0=100, n=2000, radius=reach / 2)
    assert near.decision is not None
    assert near.decision.answer == "certified"
    assert near.copies_drawn < 1100
    assert near.attention.radius_l2 >= reach / 2
