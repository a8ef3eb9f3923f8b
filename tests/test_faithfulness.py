"""The short form of benchmarks/faithfulness.py."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

import fvit
from benchmarks import faithfulness
from benchmarks.faithfulness import FIRST, MEASURES, figures_of, judged, markdown, measured, verdict
from fvit.demo.data import compositions
from fvit.evaluation.judging import probabilities_of
from fvit.export.attacking import Adversary
from fvit.runtime.plain import classify_plain


@pytest.fixture(scope="module")
def cores() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_every_image_has_a_part_of_every_figure_and_the_tables_tell_them(
    vit: fvit.FaithfulViT, cores: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faithfulness, "COPIES", 8)
    data = compositions(1, seed=8, split="held-out")
    picture, label = vit.read(data.images[0]), int(data.labels[0])
    adversary = Adversary.of(vit.bundle, weights=None, denoiser=None, adm_flags=None, steps=1, copies=1)
    mask = data.masks[0].astype(np.int8)
    done = dict(measured({FIRST: vit}, adversary, picture, cores, label=label, mask=mask, seed=0))
    ways, met = len(faithfulness.WAYS), 1 + len(faithfulness.ATTACKS)
    assert len(done) == ways * met * (2 + len(MEASURES))  # of the mean of two IoUs both, and the accuracy
    figures, more, own = figures_of([done], [FIRST])
    assert figures["clean|plain|overlap|attention"]["value"] == 1
    assert figures["clean|without denoiser|overlap|attention"]["value"] < 1  # by the other noise
    right = classify_plain(vit, picture.pixels[None])[0].argmax() == label
    assert figures["clean|plain|accuracy"]["value"] == right
    text = markdown(
        {
            "images": 1, "engine": vit.engine, "explanations": [FIRST], "figures": figures,
            "more than plain": more, "each under its own": own, "costs": [],
        }
    )  # fmt: skip
    assert text.count("\n- ") == met
    assert text.count("\n| `attention` |") == ways * met


def test_deletion_and_insertion_are_areas_under_what_the_model_says_of_images_without_tokens(
    vit: fvit.FaithfulViT,
) -> None:
    data = compositions(1, seed=4, split="held-out")
    pixels, label = vit.read(data.images[0]).pixels, int(data.labels[0])
    order = np.random.default_rng(0).permutation(64)
    fill = np.rint(pixels.mean(axis=(1, 2))).astype(np.uint8)

    def area(tokens: np.ndarray) -> float:
        shares = []
        for tenth in range(10):
            image = pixels.copy()
            for token in tokens[: tenth * 64 // 10]:
                row, column = divmod(int(token), 8)
                image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = fill[:, None, None]
            shares.append(probabilities_of(classify_plain(vit, image[None])[0])[0, label])
        return sum((a + b) / 20 for a, b in pairwise(shares))

    found = dict(judged(vit, pixels, order, classes={"": label, ", other": (label + 1) % 10}))
    assert found["deletion"] == pytest.approx((area(order), 1), abs=1e-4)
    assert found["insertion"] == pytest.approx((area(order[::-1]), 1), abs=1e-4)
    assert found["deletion, other"][0] < 0.5 * found["deletion"][0]


@pytest.mark.parametrize(
    ("low", "high", "better", "said"),
    [(-0.1, 0.1, 1, "≈"), (0.1, 0.2, 1, "+"), (0.1, 0.2, -1, "−"), (-0.2, -0.1, -1, "+"), (0, 0, 1, "≈")],
)
def test_a_difference_is_told_where_its_interval_leaves_nothing_out(
    low: float, high: float, better: int, said: str
) -> None:
    assert verdict({"value": (low + high) / 2, "low": low, "high": high}, better) == said
