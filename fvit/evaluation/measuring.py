"""One image and its certificate in, its measures out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.claims import AttentionClaim
from fvit.certificates.record import Certificate
from fvit.certificates.tally import UNIT
from fvit.evaluation.judging import Judge, plain_shares, probabilities_of, smoothed_shares
from fvit.evaluation.measures import (
    EXPLANATIONS,
    ORDERS,
    TOKENS,
    Curve,
    Cut,
    Explanation,
    Judged,
    Masked,
    Measures,
    Model,
    Order,
    Removal,
    Segmentation,
    Tokens,
    draws,
)
from fvit.evaluation.metrics import Overlap, ranked, removed_counts, segmented
from fvit.evaluation.perturbing import FILLS, Fill, filling, without
from fvit.runtime.bundle import Manifest
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.images import Picture
from fvit.runtime.masks import OBJECT, VOID, Mask, covered
from fvit.runtime.plain import classify_plain

Floats = NDArray[np.float64]
Chosen = NDArray[np.int64]

DIGITS = 6
"""Of shares, as they are kept; attributions keep all that is in a float32."""


def measure(
    vit: FaithfulViT, picture: Picture, mask: Mask | None, certificate: Certificate, *, copies: int
) -> Measures:
    """All measures of an image. mask: [H,W] of the bundle's size, not all of it void. copies: of each image
    that lacks tokens, for the smoothed model; none where it is not to be asked. The same picture, mask and
    certificate give the same measures."""
    logits, attributions = classify_plain(vit, picture.pixels[None])
    attribution, probabilities = attributions[0].astype(np.float64), probabilities_of(logits)[0]
    explanations: dict[Explanation, Floats] = {
        "plain": attribution, "smoothed": mean_attribution(certificate.attention)
    }  # fmt: skip
    judges: dict[Model, Judge] = {"plain": partial(plain_shares, vit)}
    if copies:
        judges["smoothed"] = partial(
            smoothed_shares, vit, sigma=certificate.sigma, n=copies, seed=certificate.seed
        )
    untouched: dict[Model, Floats] = {
        "plain": probabilities,
        "smoothed": shares_of(certificate, classes=len(probabilities)),
    }
    explained = {
        model: explained_class(vit.bundle.manifest, int(shares.argmax()))
        for model, shares in untouched.items()
    }
    orders = _orders(explanations, seed=draws(certificate.seed, picture.pixels_sha256))
    sets = certified_sets(certificate)
    curves, removals = [], []
    for fill in FILLS:
        filled = filling(picture.pixels, fill, grid=certificate.attention.grid)
        chosen = [tokens for each in orders.values() for tokens in each] + list(sets.values())
        perturbed = without(picture.pixels, filled, chosen, grid=certificate.attention.grid)
        for model, judge in judges.items():
            judged = [_judged(shares, explained[model]) for shares in judge(perturbed)]
            curves += _curves(orders, judged, fill=fill, model=model)
            removals += _removals(sets, judged[len(judged) - len(sets) :], fill=fill, model=model)
    return Measures(
        image=picture.name,
        pixels_sha256=picture.pixels_sha256,
        seed=certificate.seed,
        plain=_judged(untouched["plain"], explained["plain"]),
        smoothed=_judged(untouched["smoothed"], explained["smoothed"]),
        attribution=tuple(float(f"{value:.9g}") for value in attribution),
        curves=tuple(curves),
        removals=tuple(removals),
        mask=None if mask is None else masked(mask, explanations, grid=certificate.attention.grid),
    )


def mean_attribution(claim: AttentionClaim) -> Floats:
    """[N]: the mean attribution of the copies, the smoothed explanation of Hu et al. (ICML 2024)."""
    return np.asarray(claim.sums) / (claim.copies * UNIT)


def shares_of(certificate: Certificate, *, classes: int) -> Floats:
    """[C]: the share of a certificate's copies that have each class."""
    shares = np.zeros(classes)
    for index, count in certificate.class_.counts.items():
        shares[int(index)] = count / certificate.copies
    return shares


def explained_class(manifest: Manifest, said: int) -> int:
    """The class that a bundle's explanation of an image speaks for, of which a model says a class: that one,
    unless the bundle always explains the same."""
    return manifest.explained if isinstance(manifest.explained, int) else said


def certified_sets(certificate: Certificate) -> dict[Tokens, Chosen]:
    """Which tokens are removed to ask what the certified map is worth (docs/evaluation.md).

    As many as are certified in, or out where those are fewer: the most firmly certified first, ties at
    random, because of the many tokens that no copy ever chose the first ones lie in the image's upper rows.
    What is random is drawn from the certificate's seed and its image. Sets without a token are left out.
    """
    radii = np.asarray(certificate.attention.map_radii)
    draw = np.random.default_rng(draws(certificate.seed, certificate.pixels_sha256))
    any_order, among_ties = draw.permutation(len(radii)), draw.permutation(len(radii))
    inside, outside = (
        np.lexsort((among_ties, -side * radii))[: int((side * radii > 0).sum())] for side in (1, -1)
    )
    equally = min(len(inside), len(outside))
    sets = (inside[:equally], outside[:equally], any_order[:equally], outside, any_order[: len(outside)])
    return {name: chosen for name, chosen in zip(TOKENS, sets, strict=True) if len(chosen)}


def masked(mask: Mask, explanations: Mapping[Explanation, Floats], *, grid: tuple[int, int]) -> Masked:
    """The explanations [N] against a mask [H,W] of which not all is void."""
    segmentations = []
    for name in EXPLANATIONS:
        found = segmented(explanations[name].reshape(grid), mask)
        segmentations.append(
            Segmentation(
                explanation=name,
                at_mean=_cut(found.at_mean),
                at=tuple(map(_cut, found.at)),
                average_precision=_kept(found.average_precision),
            )
        )
    return Masked(
        sha256=mask_sha256(mask),
        labelled=int((mask != VOID).sum()),
        object=int((mask == OBJECT).sum()),
        tokens=tuple(np.flatnonzero(covered(mask == OBJECT, grid)).tolist()),
        segmentations=tuple(segmentations),
    )


def mask_sha256(mask: Mask) -> str:
    """Of its values, a byte a pixel."""
    return hashlib.sha256(mask.tobytes()).hexdigest()


def _orders(
    explanations: Mapping[Explanation, Floats], *, seed: Sequence[int]
) -> dict[tuple[Explanation, Order], list[Chosen]]:
    """The sets of tokens that each curve removes, one after the other."""
    found: dict[tuple[Explanation, Order], list[Chosen]] = {}
    for name, attribution in explanations.items():
        first = ranked(attribution, seed=seed)
        for order in ORDERS:
            tokens = first if order == "positive" else first[::-1]
            found[name, order] = [tokens[:count] for count in removed_counts(len(tokens))]
    return found


def _curves(
    orders: Mapping[tuple[Explanation, Order], list[Chosen]],
    judged: list[Judged],
    *,
    fill: Fill,
    model: Model,
) -> list[Curve]:
    found, first = [], 0
    for (explanation, order), sets in orders.items():
        points = judged[first : first + len(sets)]
        found.append(
            Curve(
                explanation=explanation,
                order=order,
                fill=fill,
                model=model,
                indices=tuple(each.index for each in points),
                shares=tuple(each.share for each in points),
            )
        )
        first += len(sets)
    return found


def _removals(
    sets: Mapping[Tokens, Chosen], judged: list[Judged], *, fill: Fill, model: Model
) -> list[Removal]:
    return [
        Removal(tokens=name, count=len(chosen), fill=fill, model=model, judged=each)
        for (name, chosen), each in zip(sets.items(), judged, strict=True)
    ]


def _judged(shares: Floats, explained: int) -> Judged:
    return Judged(index=int(shares.argmax()), share=_kept(shares[explained]))


def _cut(overlap: Overlap) -> Cut:
    return Cut(predicted=overlap.predicted, hit=overlap.hit)


def _kept(share: float) -> float:
    return round(float(share), DIGITS)
