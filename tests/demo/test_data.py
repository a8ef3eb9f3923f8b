import numpy as np
from PIL import Image

from fvit.demo import SAMPLES, data
from fvit.demo.models import WEIGHTS


def test_the_same_seed_gives_the_same_pixels_and_longer_sets_begin_with_shorter_ones() -> None:
    short = data.compositions(4, seed=5, split="train")
    long = data.compositions(6, seed=5, split="train")
    assert np.array_equal(short.images, long.images[:4])
    assert np.array_equal(short.masks, long.masks[:4])
    assert not np.array_equal(short.images, data.compositions(4, seed=6, split="train").images)


def test_no_handwriting_is_in_both_splits() -> None:
    from sklearn.datasets import load_digits

    train, _ = data._source("train")
    held_out, _ = data._source("held-out")
    assert len(train) + len(held_out) == len(load_digits().target) == 1797
    # Different writers drew a few identical bitmaps; apart from those nothing is shared.
    seen = {bitmap.tobytes() for bitmap in train}
    assert sum(bitmap.tobytes() in seen for bitmap in held_out) <= 3


def test_masks_are_the_digit_and_tokens_touch_it() -> None:
    drawn = data.compositions(20, seed=1, split="held-out")
    share = drawn.masks.mean(axis=(1, 2))
    assert (share > 0.03).all()
    assert (share < 0.4).all()
    touched = data.tokens_on_mask(drawn.masks, patch=8)
    for mask, tokens in zip(drawn.masks, touched, strict=True):
        for token in range(64):
            row, column = divmod(token, 8)
            assert tokens[token] == mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].any()


def test_samples_and_weights_are_small_enough_to_ship() -> None:
    samples = sorted(SAMPLES.glob("*.png"))
    assert len(samples) >= 12
    assert {Image.open(sample).size for sample in samples} == {(64, 64)}
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= 12 * 2**20
