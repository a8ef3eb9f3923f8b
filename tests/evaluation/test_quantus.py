"""Against Quantus (Hedström et al., JMLR 2023), where it has the same measure."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fvit.evaluation.measures import Cut, Judged
from fvit.evaluation.measuring import measure
from fvit.evaluation.metrics import removed_counts
from fvit.evaluation.mosaics import mosaic_row
from fvit.evaluation.perturbing import quarters
from fvit.evaluation.rows import row_of
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.masks import covered
from tests.evaluation.cases import certificate, masked, measures
from tests.evaluation.model import GRID, SIDE, Colours

quantus = pytest.importorskip("quantus")


class Torch(torch.nn.Module):
    """The model's logits, as Quantus asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = Colours()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.colours.classify(images.numpy().astype(np.float32))[0])


def image() -> NDArray[np.uint8]:
    """The same values in every channel, in other places: one mean, which is then a number to Quantus too."""
    draw = np.random.default_rng(5)
    values = draw.integers(0, 256, SIDE * SIDE).astype(np.uint8)
    return np.stack([draw.permutation(values).reshape(SIDE, SIDE) for _ in range(3)], axis=2)


def test_deletion_is_pixel_flipping_a_token_at_a_time(colours: FaithfulViT) -> None:
    picture = colours.read(image())
    certified = colours.certify(picture, n=100, alpha=0.01, k=4, seed=1)
    found = measure(colours, picture, None, certified, copies=0)
    attribution = np.asarray(found.attribution)
    assert len(set(found.attribution)) == 16  # no ties, which nobody has to break alike
    pixels = picture.pixels.astype(np.float32) / 255
    spread = np.repeat(np.repeat(attribution.reshape(GRID), 4, axis=0), 4, axis=1)[None]
    flipping = quantus.PixelFlipping(
        features_in_step=16, normalise=False, disable_warnings=True,
        perturb_baseline=float(np.rint(picture.pixels.mean()) / 255),
    )  # fmt: skip
    for order, first in (("positive", spread), ("negative", 1 - spread)):
        (curve,) = [
            each
            for each in found.curves
            if (each.explanation, each.order, each.fill) == ("plain", order, "mean")
        ]
        (flipped,) = flipping(
            model=Torch().eval(), x_batch=pixels[None], y_batch=np.array([found.plain.index]),
            a_batch=first[None], channel_first=True, softmax=True, device="cpu",
        )  # fmt: skip
        wanted = [flipped[3 * count - 1] for count in removed_counts(16)]  # a channel of a token a step
        np.testing.assert_allclose(curve.shares, wanted, atol=2e-5)
        assert max(wanted) - min(wanted) > 0.05


@pytest.mark.parametrize("count", [1, 2, 3])
def test_plain_tokens_on_the_object_are_the_intersection_with_the_largest(count: int) -> None:
    """As many as are certified in: here the first ones, whatever they are."""
    mask = masked(labelled=16, object=6, tokens=(0, 2), cut=Cut(predicted=5, hit=4))
    said = measures(plain=Judged(index=0, share=0.9), mask=mask)
    map_radii = (0.1,) * count + (-0.1,) * (4 - count)
    row = row_of(None, certificate(map_radii=map_radii), said, radii=(0.0,))
    (wanted,) = quantus.TopKIntersection(k=count, disable_warnings=True)(
        model=Torch().eval(), x_batch=np.zeros((1, 3, 2, 2)), y_batch=np.array([0]),
        a_batch=np.reshape(said.attribution, (1, 1, 2, 2)), s_batch=np.reshape([1, 0, 1, 0], (1, 1, 2, 2)),
        channel_first=True, device="cpu",
    )  # fmt: skip
    hits, of = row["on the object", "plain", 0.0]
    assert hits / of == pytest.approx(wanted)


def test_a_quarter_s_share_of_a_mosaic_is_its_focus() -> None:
    """Focus (Arias-Duart et al. 2022) of mosaics in which a class has one image."""
    attribution = np.random.default_rng(7).random((2, 2))
    row = mosaic_row(
        (4, 5, 6, 7), certificate(map_radii=(0.1, 0.0, 0.0, 0.0)), explained={"plain": 6, "smoothed": 6},
        plain=attribution.ravel(), radii=(),
    )  # fmt: skip
    (wanted,) = quantus.Focus(disable_warnings=True, normalise=False)(
        model=Torch().eval(), x_batch=np.zeros((1, 3, 2, 2)), y_batch=np.array([6]),
        a_batch=attribution[None, None], custom_batch=np.array([[0, 0, 1, 0]]), channel_first=True,
        device="cpu",
    )  # fmt: skip
    assert row["in its quarter", "plain"] == pytest.approx((wanted, 1))
    regions = [covered(_region(place), (2, 2)) for place in quarters(4, 4)]
    assert np.array_equal(regions, np.eye(4))


def _region(place: tuple[slice, slice]) -> NDArray[np.bool_]:
    region = np.zeros((4, 4), np.bool_)
    region[place] = True
    return region
