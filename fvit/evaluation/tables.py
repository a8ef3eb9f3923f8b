"""Everything that an evaluation came to, as JSON holds it (docs/evaluation.md), and in short for a person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from rich.table import Table

from fvit.evaluation.adversarial import BROKEN, JUDGED, STEP_COPIES
from fvit.evaluation.figures import Figure, Figures, Key
from fvit.evaluation.measures import BUDGETS, EXPLANATIONS, MODELS, ORDERS, TARGETS, TOKENS, Model
from fvit.evaluation.metrics import TENTHS, THRESHOLDS
from fvit.evaluation.perturbing import FILLS
from fvit.evaluation.rows import ASKED, ATTACKED, CLAIMS, UNTOUCHED

Json = dict[str, Any]


def tables(
    figures: Figures,
    *,
    radii: Sequence[float],
    models: Sequence[Model],
    labelled: bool,
    masked: bool,
    attacked: bool,
) -> Json:
    """labelled, masked: whether any image is. models: who was asked what perturbed images show. attacked:
    whether all images were."""
    found = record_tables(figures, radii=radii, labelled=labelled, mapped=True)
    found["curves"] = _curves(figures, models, labelled=labelled)
    found["certified_deletion"] = _deletion(figures, models, labelled=labelled)
    if labelled:
        found["accuracy"] = {model: figures.of(("accuracy", model)) for model in MODELS}
    if masked:
        found["segmentation"] = [_segmentation(figures, explanation) for explanation in EXPLANATIONS]
        found["certified_localisation"] = [
            {
                "radius": radius,
                **{
                    of.replace(" ", "_"): figures.of(("on the object", of, radius))
                    for of in ("certified in", "plain", "any")
                },
            }
            for radius in radii
        ]
    if attacked:
        found["adversarial"] = {
            "copies_a_step": STEP_COPIES,
            "judged_on": JUDGED,
            "attacks": _attacks(figures, labelled=labelled),
        }
    return found


def record_tables(figures: Figures, *, radii: Sequence[float], labelled: bool, mapped: bool) -> Json:
    """What certificates alone come to. mapped: whether they have maps, which those of means have not."""
    found: Json = {
        "abstained": {claim: figures.of(("abstained", claim)) for claim in ("class", "attention")},
        "certified": [_at(figures, "certified", radius) for radius in radii],
    }
    if mapped:
        found["map"] = [
            {"radius": radius, **{side: figures.of(("map", side, radius)) for side in ("in", "out")}}
            for radius in radii
        ]
    if labelled:
        found["accuracy"] = {"smoothed": figures.of(("accuracy", "smoothed"))}
        found["certified_accuracy"] = [_at(figures, "certified accuracy", radius) for radius in radii]
    return found


def mosaic_tables(figures: Figures, *, radii: Sequence[float]) -> Json:
    """The grid pointing game."""
    return {
        "explained": {name: figures.of(("explained", name)) for name in EXPLANATIONS},
        "in_its_quarter": {name: figures.of(("in its quarter", name)) for name in EXPLANATIONS},
        "certified_in": [
            {"radius": radius, "in_its_quarter": figures.of(("in its quarter", "certified in", radius))}
            for radius in radii
        ],
    }


def _at(figures: Figures, what: str, radius: float) -> Json:
    return {"radius": radius, **{claim: figures.of((what, claim, radius)) for claim in CLAIMS}}


def _asked(labelled: bool) -> list[str]:
    return [what for what in ASKED if labelled or what != "accuracy"]


def _curves(figures: Figures, models: Sequence[Model], *, labelled: bool) -> list[Json]:
    found = []
    for explanation in EXPLANATIONS:
        for order in ORDERS:
            for fill in FILLS:
                for model in models:
                    of = (explanation, order, fill, model)
                    curve: Json = {"explanation": explanation, "order": order, "fill": fill, "model": model}
                    curve["removed"] = [tenth / TENTHS for tenth in range(TENTHS)]
                    for what in _asked(labelled):
                        points = [figures.of(("curve", what, *of, tenth)) for tenth in range(TENTHS)]
                        curve[what] = {"curve": points, "auc": figures.of(("area", what, *of))}
                    found.append(curve)
    return found


def _deletion(figures: Figures, models: Sequence[Model], *, labelled: bool) -> list[Json]:
    return [
        {
            "tokens": tokens,
            "count": figures.of(("removed", tokens)),
            "fill": fill,
            "model": model,
            **{what: figures.of(("removal", what, tokens, fill, model)) for what in _asked(labelled)},
        }
        for tokens in TOKENS
        for model in models
        for fill in (UNTOUCHED, *FILLS)
    ]


def _attacks(figures: Figures, *, labelled: bool) -> list[Json]:
    found = []
    for model, target, (norm, budget) in product(MODELS, TARGETS, BUDGETS):
        of = (model, target, norm, budget)
        row: Json = {"model": model, "target": target, "norm": norm, "budget": budget}
        row["distance"] = figures.of(("attack", "distance", *of))
        for when in (UNTOUCHED, ATTACKED):
            row[when] = {
                what: figures.of(("attack", what, *of, when))
                for what in ("accuracy", "kept", "overlap")
                if labelled or what != "accuracy"
            }
        found.append(row)
    return found


def _segmentation(figures: Figures, explanation: str) -> Json:
    def cut(at: str | float) -> Json:
        iou: list[Key] = [(f"IoU of the {what}", explanation, at) for what in ("object", "background")]
        return {"pixel_accuracy": figures.of(("pixel accuracy", explanation, at)), "mIoU": figures.of(*iou)}

    return {
        "explanation": explanation,
        **cut("mean"),
        "mAP": figures.of(("average precision", explanation)),
        "by_threshold": [{"threshold": float(at), **cut(float(at))} for at in THRESHOLDS],
    }


def in_short(found: Json, *, sigma: float) -> Table:
    """A row a figure of those that one looks at first: at radius 0, σ and 2σ, and filled with the mean."""
    title = f"{found['data']['evaluated']:,} images, 95 % intervals"
    if broken := len(found.get("broken", ())):
        title += f"; {broken:,} broken certificate{'s' if broken > 1 else ''}: see {BROKEN}/"
    drawn = Table(title=title)
    for heading in ("", "value", "from", "to", "images"):
        drawn.add_column(heading, justify="right" if heading else "left")

    def add(words: str, figure: Figure) -> None:
        if "value" in figure:
            cells = [f"{figure[name]:.3f}" for name in ("value", "low", "high")]
            drawn.add_row(words, *cells, f"{figure['images']:,}")

    for model, figure in found.get("accuracy", {}).items():
        add(f"accuracy, {model}", figure)
    for claim, figure in found["abstained"].items():
        add(f"{claim} abstains", figure)
    accurate = "certified_accuracy" if "certified_accuracy" in found else "certified"
    sides = {row["radius"]: {side: row[side] for side in ("in", "out")} for row in found.get("map", ())}
    for row in found[accurate]:
        if any(math.isclose(row["radius"], times * sigma, rel_tol=1e-4) for times in (0, 1, 2)):
            words = accurate.replace("_", " ")
            for claim in CLAIMS:
                add(f"{words} at {row['radius']:g}, {claim}", row[claim])
            for side, figure in sides.get(row["radius"], {}).items():
                add(f"tokens certified {side} at {row['radius']:g}", figure)
    what = "accuracy" if "accuracy" in found else "kept"
    for curve in found["curves"]:
        if curve["fill"] == "mean":
            words = f"{curve['order']} AUC of {what}, {curve['explanation']}, {curve['model']} model"
            add(words, curve[what]["auc"])
    for removal in found["certified_deletion"]:
        if removal["fill"] == "mean":
            add(f"{what}, removed: {removal['tokens']}, {removal['model']} model", removal[what])
    for attack in found.get("adversarial", {}).get("attacks", []):
        told = "overlap of the explanation" if attack["target"] == "attention" else what
        at = f"{attack['budget']:g}/255" if attack["norm"] == "linf" else f"{attack['budget']:g} × radius"
        words = f"{'ℓ∞' if attack['norm'] == 'linf' else 'ℓ2'} {at}, {attack['model']} model"
        figures = {when: attack[when][told.partition(" ")[0]] for when in (UNTOUCHED, ATTACKED)}
        if attack["norm"] == "l2" or attack["budget"] == BUDGETS[0][1]:
            add(f"{told}, without attack, {words}", figures[UNTOUCHED])
        add(f"{told}, attacked, {words}", figures[ATTACKED])
    for row in found.get("segmentation", []):
        for name in ("pixel_accuracy", "mIoU", "mAP"):
            add(f"{name.replace('_', ' ')}, {row['explanation']}", row[name])
    for row in found.get("certified_localisation", [])[:1]:
        for name in ("certified_in", "plain", "any"):
            add(f"on the object, {name.replace('_', ' ')}", row[name])
    for name, figure in found.get("mosaics", {}).get("in_its_quarter", {}).items():
        add(f"in its quarter, {name}", figure)
    for row in found.get("mosaics", {}).get("certified_in", [])[:1]:
        add("in its quarter, certified in", row["in_its_quarter"])
    return drawn
