"""Certificates and measures that a test writes down."""

from typing import Any

import numpy as np

from fvit.certificates.record import Certificate
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms
from fvit.evaluation.measures import Curve, Cut, Judged, Masked, Measures, Removal, Segmentation

DIGEST = "0" * 64


def certificate(
    *, map_radii: tuple[float, ...], index: int = 0, radius: float = 0.3, attention: float = 0.2
) -> Certificate:
    """Of 2×2 tokens and three classes, of 100 copies that agree: with these radii, as no tally would give
    them."""
    terms = Terms(
        sigma=0.25, n=100, alpha=0.001, k=(2,), beta=0.8, aggregate="vote", seed=7, size=(4, 4), radius=None
    )
    tally = Tally(3, 4, terms.k)
    logits = np.eye(3, dtype=np.float32)[index]
    tally.add(np.tile(logits, (100, 1)), np.tile(np.array([0.5, 0.25, 0.125, 0.125], np.float32), (100, 1)))
    made = Certificate.of(
        tally, terms, image="a.png", sha256=DIGEST, pixels_sha256=DIGEST, labels=("x", "y", "z"), grid=(2, 2),
        engine={"name": "numpy", "device": "cpu", "precision": "fp32"}, bundle=DIGEST, seconds=1.0,
    )  # fmt: skip
    changes: dict[str, Any] = {
        "class_": made.class_.model_copy(update={"radius_l2": radius, "abstained": radius == 0}),
        "attention": made.attention.model_copy(
            update={"map_radii": map_radii, "radius_l2": attention, "abstained": attention == 0}
        ),
    }
    return made.model_copy(update=changes)


def curve(indices: tuple[int, ...], shares: tuple[float, ...]) -> Curve:
    return Curve(
        explanation="plain", order="positive", fill="mean", model="plain", indices=indices, shares=shares
    )


def measures(
    *,
    plain: Judged,
    curves: tuple[Curve, ...] = (),
    removals: tuple[Removal, ...] = (),
    mask: Masked | None = None,
) -> Measures:
    return Measures(
        image="a.png", pixels_sha256=DIGEST, seed=7, plain=plain, smoothed=Judged(index=0, share=1.0),
        attribution=(0.1, 0.2, 0.3, 0.4), curves=curves, removals=removals, mask=mask,
    )  # fmt: skip


def masked(*, labelled: int, object: int, tokens: tuple[int, ...], cut: Cut) -> Masked:
    """A mask, and the same cut of both explanations wherever they are cut."""
    segmentations = tuple(
        Segmentation(explanation=name, at_mean=cut, at=(cut,) * 20, average_precision=0.75)
        for name in ("plain", "smoothed")
    )
    return Masked(sha256=DIGEST, labelled=labelled, object=object, tokens=tokens, segmentations=segmentations)
