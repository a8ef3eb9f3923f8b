import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

import fvit
from fvit.certificates.record import Terms, class_claim
from fvit.certificates.tally import Tally
from fvit.errors import FvitError
from fvit.runtime.host import Section, Smoother, noisy_copies
from fvit.runtime.images import read_image

Floats = np.ndarray


class Recorder:
    """A pipeline that keeps what it is given; class and attribution come from the pixels."""

    image_size = (4, 4)
    classes, tokens = 3, 5

    def __init__(self) -> None:
        self.batches: list[Floats] = []

    def __call__(self, noisy: Floats, *, sigma: float) -> tuple[Floats, Floats]:
        self.batches.append(noisy.copy())
        flat = noisy.reshape(len(noisy), -1)
        attribution = np.abs(flat[:, 3:8])
        return flat[:, :3], attribution / attribution.sum(axis=1, keepdims=True)


class LinearModel:
    """Two classes by the sign of w·x + b."""

    image_size = (4, 4)
    classes, tokens = 2, 2

    def __init__(self, weights: Floats, bias: float) -> None:
        self.weights, self.bias = weights, bias

    def __call__(self, noisy: Floats, *, sigma: float) -> tuple[Floats, Floats]:
        score = noisy.reshape(len(noisy), -1) @ self.weights + self.bias
        return np.stack([-score, score], axis=1), np.full((len(noisy), 2), 0.5, np.float32)


def _pixels(seed: int) -> Floats:
    return np.random.default_rng(seed).random((3, 4, 4), np.float32)


def test_every_copy_is_run_once_in_order_and_padding_is_drawn_not_counted() -> None:
    pipeline, tally = Recorder(), Tally(3, 5, (2,))
    for _ in Smoother(pipeline, batch=4).run([Section(_pixels(0), range(3, 13), tally)], sigma=0.5, seed=9):
        pass
    assert [len(batch) for batch in pipeline.batches] == [4, 4, 4]
    expected = noisy_copies(_pixels(0), range(3, 15), sigma=0.5, seed=9)
    assert np.array_equal(np.concatenate(pipeline.batches), expected)
    assert tally.copies == tally.counts.sum() == 10
    assert tally.votes.sum() == 2 * 10
    assert tally.sums.sum() == pytest.approx(10)


@pytest.mark.parametrize("batch", [1, 3, 8, 50])
def test_images_that_share_batches_are_counted_apart(batch: int) -> None:
    tallies = [Tally(3, 5, (2, 4)) for _ in range(3)]
    sections = [Section(_pixels(i), range(i, i + 7), tally) for i, tally in enumerate(tallies)]
    done = [section.tally for section in Smoother(Recorder(), batch=batch).run(sections, sigma=1, seed=1)]
    assert done == tallies
    for i, tally in enumerate(tallies):
        alone = Tally(3, 5, (2, 4))
        logits, attribution = Recorder()(noisy_copies(_pixels(i), range(i, i + 7), sigma=1, seed=1), sigma=1)
        alone.add(logits, attribution)
        assert np.array_equal(alone.counts, tally.counts)
        assert np.array_equal(alone.votes, tally.votes)
        assert np.array_equal(alone.sums, tally.sums)
        assert np.array_equal(alone.squares, tally.squares)


def test_votes_are_exactly_k_with_ties_to_the_lower_index() -> None:
    tally = Tally(2, 4, (1, 2, 3))
    tally.add(np.zeros((1, 2), np.float32), np.array([[0.25, 0.25, 0.25, 0.25]], np.float32))
    assert tally.votes.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert tally.counts.tolist() == [1, 0]


def test_values_that_are_not_finite_certify_nothing() -> None:
    with pytest.raises(FvitError, match="not finite"):
        Tally(2, 1, (1,)).add(np.array([[np.nan, 0]], np.float32), np.ones((1, 1), np.float32))


def test_an_error_of_the_engine_reaches_the_caller() -> None:
    class Broken(Recorder):
        def __call__(self, noisy: Floats, *, sigma: float) -> tuple[Floats, Floats]:
            raise RuntimeError("engine")

    run = Smoother(Broken(), batch=2).run([Section(_pixels(0), range(4), Tally(3, 5, (1,)))], sigma=1, seed=0)
    with pytest.raises(RuntimeError, match="engine"):
        next(run)


def test_class_radius_never_exceeds_the_distance_to_a_linear_boundary() -> None:
    """End to end on a model whose exact radius is |w·x+b|/‖w‖, over margins and seeds."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=48).astype(np.float32)
    length = float(np.linalg.norm(weights))
    for seed, margin in enumerate(np.linspace(0.0, 0.9, 12)):
        pixels = _pixels(seed)
        bias = margin * length - float(pixels.ravel() @ weights)
        selection, estimation = Tally(2, 2, ()), Tally(2, 2, ())
        sections = [Section(pixels, range(50), selection), Section(pixels, range(50, 1050), estimation)]
        for _ in Smoother(LinearModel(weights, bias), batch=50).run(sections, sigma=0.5, seed=seed):
            pass
        terms = Terms(sigma=0.5, n0=50, n=1000, alpha=1e-3, k=(1,), beta=1, aggregate="vote", seed=seed)
        claim = class_claim(selection, estimation, terms, labels=("0", "1"), pixels=48)
        assert claim.radius_l2 <= margin + 1e-6
        assert margin < 0.2 or claim.radius_l2 > 0.6 * margin


def test_at_most_alpha_of_a_thousand_class_certificates_overclaim() -> None:
    """1,000 simulated certificates at alpha = 0.05 in a world whose exact radius is known."""
    rng = np.random.default_rng(1)
    sigma, margin, runs = 0.5, 0.4, 1000
    p = norm.cdf(margin / sigma)
    terms = Terms(sigma=sigma, n0=50, n=400, alpha=0.05, k=(1,), beta=1, aggregate="vote", seed=0)
    wrong = 0
    for _ in range(runs):
        selection, estimation = Tally(2, 2, ()), Tally(2, 2, ())
        for tally, copies in ((selection, 50), (estimation, 400)):
            right = rng.binomial(copies, p)
            tally.copies, tally.counts[:] = copies, (copies - right, right)
        claim = class_claim(selection, estimation, terms, labels=("0", "1"), pixels=48)
        wrong += claim.radius_l2 > (margin if claim.index == 1 else 0.0)
    assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


# --- the embedded model ------------------------------------------------------------------------------


def _copy_results(vit: fvit.FaithfulViT, pixels: Floats, batch: int) -> tuple[Floats, Floats, Floats]:
    """Noisy copies 0..63 of an image, and each one's logits and attribution, run at a batch size."""
    parts = [
        noisy_copies(pixels, range(first, first + batch), sigma=0.25, seed=0) for first in range(0, 64, batch)
    ]
    results = [vit.pipeline(part, sigma=0.25) for part in parts]
    logits, attribution = (np.concatenate(column) for column in zip(*results, strict=True))
    return np.concatenate(parts), logits, attribution


def test_at_other_batch_sizes_only_ties_within_rounding_may_turn(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    for sample in samples[:2]:
        pixels = read_image(sample, size=(64, 64)).pixels
        noisy, logits, attribution = _copy_results(vit, pixels, 32)
        for batch in (1, 8):
            others = _copy_results(vit, pixels, batch)
            assert np.array_equal(noisy, others[0])
            for values, found, places in ((logits, others[1], 1), (attribution, others[2], 10)):
                scale = np.abs(values).max()
                for one, other in zip(values, found, strict=True):
                    chosen = np.argsort(-one, kind="stable")[:places]
                    again = np.argsort(-other, kind="stable")[:places]
                    for moved in set(chosen) ^ set(again):
                        assert abs(one[moved] - one[chosen[-1]]) <= 1e-5 * max(1.0, scale)


def test_a_certificate_is_the_same_alone_in_company_in_any_order_and_again(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    terms = Terms(sigma=0.25, n0=20, n=75, alpha=0.01, k=(10,), beta=0.8, aggregate="vote", seed=3)
    pictures = [vit.read(sample) for sample in samples[:3]]
    runs = [
        {c.image: c for c in vit.certify_many(order, terms)}
        for order in (pictures, pictures[::-1], pictures[:1], pictures[1:2])
    ]
    for run in runs[1:]:
        for image, again in run.items():
            first, again_record = runs[0][image].to_dict(), again.to_dict()
            first.pop("seconds"), again_record.pop("seconds")
            assert first == again_record
            assert np.array_equal(runs[0][image].attention.smoothed, again.attention.smoothed)


def test_another_seed_draws_other_copies(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    one, other = (vit.certify(samples[0], n0=8, n=64, alpha=0.1, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.attention.smoothed, other.attention.smoothed)


def test_memory_does_not_grow_with_the_number_of_copies() -> None:
    """100,000 copies take the memory of 1,000 (DESIGN section 1: accumulators, nothing else)."""
    peaks = []
    for copies in (1000, 100_000):
        smoother, tally = Smoother(LinearModel(np.ones(48, np.float32), 0.0), batch=100), Tally(2, 2, (1,))
        tracemalloc.start()
        for _ in smoother.run([Section(_pixels(0), range(copies), tally)], sigma=0.5, seed=0):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert tally.copies == copies
    assert peaks[1] <= 1.1 * peaks[0]
