"""One image's part of every figure, from its label, its certificate and its measures (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.record import Certificate
from fvit.evaluation.figures import Key, Row
from fvit.evaluation.measures import (
    BUDGETS,
    EXPLANATIONS,
    MODELS,
    TARGETS,
    TOKENS,
    Attacked,
    Cut,
    Judged,
    Masked,
    Measures,
    Model,
    Said,
    draws,
)
from fvit.evaluation.metrics import OVERLAPS, TENTHS, THRESHOLDS, area_under, overlap_parts, ranked
from fvit.evaluation.perturbing import FILLS

Part = tuple[Key, tuple[float, float]]
Sides = NDArray[np.int8]
"""[N]: 1 where a token is certified in, −1 where out, 0 where open."""

NONE = (0.0, 0.0)
"""The part of an image that has none."""

CLAIMS = ("class", "attention", "both")
ASKED = ("accuracy", "kept", "share")
"""Of what a model says of a perturbed image: whether it is the label; whether it is what the model says of
the image as it is; and the share of the class that is explained."""

UNTOUCHED = "none"
"""The set of tokens that is empty, or the attack that nobody makes."""

ATTACKED = "attacked"


def row_of(label: int | None, certificate: Certificate, measures: Measures, *, radii: Sequence[float]) -> Row:
    """radii: at which it is asked what is certified. Every image has the same keys,
    if all were attacked or none."""
    said: dict[Model, Judged] = {"plain": measures.plain, "smoothed": measures.smoothed}
    sides = {radius: certificate.attention.map(radius).ravel() for radius in radii}
    right = NONE if label is None else (measures.plain.index == label, 1)
    attacked = measures.adversarial
    return dict(
        [
            (("accuracy", "plain"), right),
            *_certified(label, certificate, radii),
            *_map(certificate, radii),
            *_curves(label, said, measures),
            *_removals(label, said, measures),
            *_segmentation(measures.mask),
            *_localised(sides, measures),
            *(() if attacked is None else _attacked(label, said, attacked, k=certificate.attention.k)),
        ]
    )


def record_row(label: int | None, certificate: Certificate, *, radii: Sequence[float]) -> Row:
    """The part of every figure that takes a certificate alone; means have none of the map's."""
    return dict([*_certified(label, certificate, radii), *_map(certificate, radii)])


def models_of(measures: Measures) -> list[Model]:
    """Who was asked what perturbed images show."""
    return list(dict.fromkeys(curve.model for curve in measures.curves))


def _certified(label: int | None, certificate: Certificate, radii: Sequence[float]) -> Iterator[Part]:
    of_class, attention = certificate.class_, certificate.attention
    right = of_class.index == label
    known = label is not None
    yield ("abstained", "class"), (of_class.abstained, 1)
    yield ("abstained", "attention"), (attention.abstained, 1)
    yield ("accuracy", "smoothed"), (right and not of_class.abstained, 1) if known else NONE
    for radius in radii:
        class_holds = not of_class.abstained and of_class.radius_l2 >= radius
        attention_holds = not attention.abstained and attention.radius_l2 >= radius
        holds = dict(
            zip(CLAIMS, (class_holds, attention_holds, class_holds and attention_holds), strict=True)
        )
        for claim, it in holds.items():
            yield ("certified", claim, radius), (it, 1)
            yield ("certified accuracy", claim, radius), (it and right, 1) if known else NONE


def _map(certificate: Certificate, radii: Sequence[float]) -> Iterator[Part]:
    if certificate.attention.map_radii is None:
        return
    reach = np.asarray(certificate.attention.map_radii)
    for name, of in (("in", np.sort(reach)), ("out", np.sort(-reach))):
        # At 0 everything that is certified at any radius.
        below = np.searchsorted(of, np.maximum(radii, np.nextafter(0, 1)))
        for radius, count in zip(radii, len(of) - below, strict=True):
            yield ("map", name, radius), (float(count / len(of)), 1)


def _asked(judged: Judged, said: Judged, label: int | None) -> dict[str, tuple[float, float]]:
    return {
        "accuracy": NONE if label is None else (judged.index == label, 1),
        "kept": (judged.index == said.index, 1),
        "share": (judged.share, 1),
    }


def _curves(label: int | None, said: dict[Model, Judged], measures: Measures) -> Iterator[Part]:
    for curve in measures.curves:
        of = (curve.explanation, curve.order, curve.fill, curve.model)
        before = said[curve.model]
        points = [before] + [
            Judged(index=index, share=share) for index, share in zip(curve.indices, curve.shares, strict=True)
        ]
        asked = [_asked(point, before, label) for point in points]
        for what in ASKED:
            parts = [each[what] for each in asked]
            yield from ((("curve", what, *of, tenth), parts[tenth]) for tenth in range(TENTHS))
            area = float(area_under(np.array([numerator for numerator, _ in parts])))
            yield ("area", what, *of), (area, parts[0][1])


def _removals(label: int | None, said: dict[Model, Judged], measures: Measures) -> Iterator[Part]:
    """For each set of tokens also what the model says of the same images as they are."""
    found = {(each.tokens, each.fill, each.model): each for each in measures.removals}
    for tokens in TOKENS:
        counts = [each.count for each in measures.removals if each.tokens == tokens]
        yield ("removed", tokens), (counts[0], 1) if counts else NONE
        for model in models_of(measures):
            before = _asked(said[model], said[model], label)
            for what in ASKED:
                yield ("removal", what, tokens, UNTOUCHED, model), before[what] if counts else NONE
            for fill in FILLS:
                removal = found.get((tokens, fill, model))
                after = None if removal is None else _asked(removal.judged, said[model], label)
                for what in ASKED:
                    yield ("removal", what, tokens, fill, model), NONE if after is None else after[what]


def _segmentation(mask: Masked | None) -> Iterator[Part]:
    found = {} if mask is None else {each.explanation: each for each in mask.segmentations}
    for explanation in EXPLANATIONS:
        of = found.get(explanation)
        precision = NONE if of is None else (of.average_precision, 1)
        yield ("average precision", explanation), precision
        cuts: dict[str | float, Cut | None] = {"mean": None if of is None else of.at_mean}
        cuts |= {
            float(threshold): None if of is None else of.at[place]
            for place, threshold in enumerate(THRESHOLDS)
        }
        for at, cut in cuts.items():
            parts = dict.fromkeys(OVERLAPS, NONE)
            if mask is not None and cut is not None:
                parts = overlap_parts(
                    predicted=cut.predicted, hit=cut.hit, labelled=mask.labelled, on_object=mask.object
                )
            yield from (((name, explanation, at), part) for name, part in parts.items())


def _localised(sides: Mapping[float, Sides], measures: Measures) -> Iterator[Part]:
    """Of the tokens that are certified in, how many touch the object; of as many that the plain explanation
    has first; and of as many of any."""
    seed = draws(measures.seed, measures.pixels_sha256)
    first = ranked(np.asarray(measures.attribution), seed=seed)
    touching = np.zeros(len(first), np.bool_)
    if measures.mask is not None:
        touching[list(measures.mask.tokens)] = True
    for radius, side in sides.items():
        inside = side > 0
        count = int(inside.sum()) if measures.mask is not None else 0
        yield ("on the object", "certified in", radius), (int((inside & touching).sum()), count)
        yield ("on the object", "plain", radius), (int(touching[first[:count]].sum()), count)
        yield ("on the object", "any", radius), (count * float(touching.mean()), count)


def _attacked(
    label: int | None, said: Mapping[Model, Judged], attacked: Attacked, *, k: int
) -> Iterator[Part]:
    """Of each attack, and of the same images as they are. An adversary that knows the label leaves alone what
    is wrong already, so only what was right before can be right under attack."""
    untouched = {"plain": Said(index=said["plain"].index, shared=k), "smoothed": attacked.untouched}
    found = {(each.model, each.target, each.norm, each.budget): each for each in attacked.attacks}
    for model, target, (norm, budget) in product(MODELS, TARGETS, BUDGETS):
        of = (model, target, norm, budget)
        attack, before = found.get(of), untouched[model]
        for when, after in ((UNTOUCHED, before), (ATTACKED, before if attack is None else attack.said)):
            right = before.index == label == after.index
            parts = {
                "accuracy": NONE if label is None else (right, 1),
                "kept": (after.index == said[model].index, 1),
                "overlap": (after.shared, k),
            }
            for what, part in parts.items():
                yield ("attack", what, *of, when), NONE if attack is None else part
        yield ("attack", "distance", *of), NONE if attack is None else (attack.distance, 1)
