import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fvit
from fvit.runtime.drawing import draw_map
from fvit.service.overlay import GAP, SIDE, draw_certificate


@pytest.mark.parametrize("radius", [None, 0.2])
def test_the_certified_map_stands_beside_the_explanation_at_its_radius(
    vit: fvit.FaithfulViT, samples: list[Path], radius: float | None
) -> None:
    """That of the decision, or how far the explanation is certified."""
    picture = vit.read(samples[0])
    certificate = vit.certify(picture, n=100, radius=radius, seed=0)
    drawn = np.asarray(Image.open(io.BytesIO(draw_certificate(picture, certificate))))
    claim = certificate.attention
    sides = claim.map(claim.radius_l2 if radius is None else radius)
    assert not np.array_equal(sides, claim.map(0))
    assert drawn.shape == (SIDE, 2 * SIDE + GAP, 3)
    expected = np.asarray(draw_map(picture.pixels, sides, size=(SIDE, SIDE)))
    assert np.array_equal(drawn[:, -SIDE:], expected)


def test_means_have_no_map(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    picture = vit.read(samples[0])
    certificate = vit.certify(picture, n=66, alpha=0.1, aggregate="mean", seed=0)
    assert Image.open(io.BytesIO(draw_certificate(picture, certificate))).size == (SIDE, SIDE)
