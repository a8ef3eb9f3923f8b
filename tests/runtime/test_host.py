"""The CPU's counter and the pipeline of a bundle: a copy's result is its own, in every batch and company."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import fvit
from fvit.certificates.claims import class_claim
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.runtime.host import HostCounter
from fvit.runtime.images import Picture, read_image
from fvit.runtime.noise import noisy_copies, philox_key
from fvit.runtime.queue import Queue, Stretch

Floats = np.ndarray


class Recorder:
    """A pipeline that keeps what it is given; class and attribution come from the pixels."""

    def __init__(self) -> None:
        self.batches: list[tuple[Floats, Floats]] = []

    def __call__(self, noisy: Floats, *, sigma: Floats) -> tuple[Floats, Floats]:
        self.batches.append((noisy.copy(), sigma.copy()))
        flat = noisy.reshape(len(noisy), -1)
        attribution = np.abs(flat[:, 3:8])
        return flat[:, :3], attribution / attribution.sum(axis=1, keepdims=True)


class LinearModel:
    """Two classes by the sign of w·x + b."""

    def __init__(self, weights: Floats, bias: float) -> None:
        self.weights, self.bias = weights, bias

    def __call__(self, noisy: Floats, *, sigma: Floats) -> tuple[Floats, Floats]:
        score = noisy.reshape(len(noisy), -1) @ self.weights + self.bias
        return np.stack([-score, score], axis=1), np.full((len(noisy), 2), 0.5, np.float32)


def _picture(seed: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return read_image(pixels, size=(4, 4))


def _stretch(seed: int, copies: range, *, sigma: float = 0.25, sizes: Sequence[int] = (2,)) -> Stretch:
    return Stretch(_picture(seed), copies, sigma=sigma, key=seed, tally=Tally(3, 5, tuple(sizes)))


def test_a_batch_holds_each_parts_own_copies_at_its_own_level() -> None:
    pipeline = Recorder()
    parts = [(_stretch(0, range(10), sigma=0.25), range(3, 5)), (_stretch(1, range(9), sigma=1.0), range(4))]
    tallies = HostCounter(pipeline, rows=8).begin(parts)()
    ((noisy, sigma),) = pipeline.batches
    assert sigma.tolist() == [0.25] * 2 + [1.0] * 4
    expected = [
        noisy_copies(one.picture.pixels, copies, sigma=one.sigma, key=one.key) for one, copies in parts
    ]
    assert np.array_equal(noisy, np.concatenate(expected))
    for tally, copies in zip(tallies, (2, 4), strict=True):
        assert isinstance(tally, Tally)
        assert tally.copies == copies
        assert tally.counts.sum() == tally.copies
        assert tally.votes.sum() == 2 * tally.copies
        assert tally.mean.sum() == pytest.approx(1)


def test_values_that_are_not_finite_certify_nothing() -> None:
    class Broken(Recorder):
        def __call__(self, noisy: Floats, *, sigma: Floats) -> tuple[Floats, Floats]:
            logits, attribution = super().__call__(noisy, sigma=sigma)
            return logits * np.float32(np.nan), attribution

    with Queue_of(Broken()) as queue, pytest.raises(FvitError, match="not finite"):
        queue.submit(_stretch(0, range(4))).result()


def test_what_is_wrong_with_one_part_leaves_the_others_alone() -> None:
    class Poisoned(Recorder):
        def __call__(self, noisy: Floats, *, sigma: Floats) -> tuple[Floats, Floats]:
            logits, attribution = super().__call__(noisy, sigma=sigma)
            attribution[0] = np.nan
            return logits, attribution

    parts = [(_stretch(seed, range(3)), range(3)) for seed in range(2)]
    bad, good = HostCounter(Poisoned(), rows=8).begin(parts)()
    assert isinstance(bad, FvitError)
    assert isinstance(good, Tally)
    assert good.copies == 3


class Queue_of:
    """A queue with one CPU core, closed at the end."""

    def __init__(self, pipeline: Recorder | LinearModel) -> None:
        self._queue = Queue([HostCounter(pipeline, rows=50)])

    def __enter__(self) -> Queue:
        return self._queue

    def __exit__(self, *_: object) -> None:
        self._queue.close(cancel=True)


def test_class_radius_never_exceeds_the_distance_to_a_linear_boundary() -> None:
    """End to end on a model whose exact radius is |w·x+b|/‖w‖, over margins and seeds."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=48).astype(np.float32)
    length = float(np.linalg.norm(weights))
    for seed, margin in enumerate(np.linspace(0.0, 0.9, 12)):
        picture = _picture(seed)
        bias = margin * length - float(picture.pixels.ravel() / 255 @ weights)
        terms = Terms.of(
            sigma=0.5, n=1000, alpha=1e-3, k=(1,), beta=1, aggregate="vote", seed=seed, size=(4, 4)
        )
        key = philox_key(picture.pixels_sha256, size=(4, 4), seed=seed)
        stretch = Stretch(picture, range(1000), sigma=0.5, key=key, tally=Tally(2, 2, ()))
        with Queue_of(LinearModel(weights, bias)) as queue:
            tally = queue.submit(stretch).result()
        claim = class_claim(tally, terms, labels=("0", "1"))
        assert claim.radius_l2 <= margin + 1e-6
        assert margin < 0.2 or claim.radius_l2 > 0.6 * margin


# --- the embedded model ------------------------------------------------------------------------------


def test_a_copys_result_is_the_same_to_the_bit_in_every_batch(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    """Alone, at the end of a batch that is not full, and beside copies of other levels."""
    pixels = vit.read(samples[0]).pixels
    noisy = noisy_copies(pixels, range(9), sigma=0.25, key=0)
    level = np.full(9, 0.25, np.float32)
    expected = vit.pipeline(noisy, sigma=level)
    mixed = level.copy()
    mixed[::2] = 0.5
    others = vit.pipeline(noisy, sigma=mixed)
    for row in range(9):
        alone = vit.pipeline(noisy[row : row + 1], sigma=level[:1])
        for one, all_rows, among in zip(alone, expected, others, strict=True):
            assert np.array_equal(one[0], all_rows[row])
            assert (row % 2 == 0) or np.array_equal(among[row], all_rows[row])


def test_a_closed_pipeline_says_so(demo_bundle: Path) -> None:
    vit = fvit.load(demo_bundle)
    vit.close()
    with pytest.raises(FvitError, match=r"closed: load the bundle again with fvit\.load"):
        vit.pipeline.classify(np.zeros((1, 3, 64, 64), np.float32))
