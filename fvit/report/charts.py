"""What a report draws: the charts and tables of what an evaluation, or certificates alone, came to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fvit.errors import FvitError
from fvit.evaluation.evaluate import NAME
from fvit.evaluation.rows import ASKED, ATTACKED, CLAIMS, UNTOUCHED

Json = Mapping[str, Any]
Cell = str | int | float | None

BINS = 30

CLAIM = {"class": "class", "attention": "explanation", "both": "both"}
ASKS = {
    "accuracy": "the answer is the label",
    "kept": "the answer stays",
    "share": "share of the explained class",
}
"""Of what a model says of a perturbed image (rows.py)."""

ATTACKS_ASK = ASKS | {"overlap": "share of the k tokens that stay"}
"""Of what a model says of an attacked image."""

RADIUS = "ℓ₂ radius"


@dataclass(frozen=True)
class Line:
    """points: (x, value, low, high) from left to right, the last two None where there is no interval."""

    name: str
    points: Sequence[tuple[float, float, float | None, float | None]]


@dataclass(frozen=True)
class Titled:
    """id: where it is on the page, and of a figure the name of its CSV. words: below the title."""

    id: str
    title: str
    words: str


@dataclass(frozen=True)
class Chart(Titled):
    """x, y: what the axes are. share: whether y is a share of 1."""

    x: str
    y: str
    lines: Sequence[Line]
    share: bool = True
    kind: Literal["lines"] = "lines"


@dataclass(frozen=True)
class Histogram(Titled):
    """bins: (from, to, images)."""

    x: str
    bins: Sequence[tuple[float, float, int]]
    kind: Literal["bars"] = "bars"


@dataclass(frozen=True)
class Table(Titled):
    """A cell is a word, a number, or None where there is none."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class View:
    """What is seen at once, under a name where there are several to choose from."""

    name: str
    parts: Sequence[Chart | Histogram | Table]


@dataclass(frozen=True)
class Section(Titled):
    """What stands under one heading."""

    views: Sequence[View] = field(default_factory=tuple)


def sections_of(found: Json) -> list[Section]:
    """Sections from tables as fvit-evaluate writes them (docs/evaluation.md), or those of certificates alone;
    what is not there has none. Raises FvitError where they are not such tables."""
    with reading_tables():
        return list(_sections(found))


@contextmanager
def reading_tables() -> Iterator[None]:
    """What goes wrong in what they hold, as a FvitError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FvitError(
            f"{NAME} holds no tables of this fvit: run fvit-evaluate again, which writes it anew"
        ) from error


def distributions(radii: Mapping[str, Sequence[float]]) -> Section:
    """How far the certificates reach. radii: of the images whose class, or explanation, is certified."""
    views = [
        Histogram(
            f"radii-of-{name}",
            f"Certified radius of the {name}",
            f"Images by radius; {len(found):,} have one, the others abstain.",
            RADIUS,
            histogram(found),
        )
        for name, found in radii.items()
    ]
    return Section("radii", "How far certificates reach", "", [View("", views)])


def histogram(values: Sequence[float]) -> list[tuple[float, float, int]]:
    """(from, to, count) of BINS equal bins from 0 to the largest value, which the last of them includes."""
    if not len(values):
        return []
    counts, edges = np.histogram(values, bins=BINS, range=(0, max(values)))
    edges = np.round(edges, 6)
    return [
        (float(low), float(high), int(count))
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]


def _sections(found: Json) -> Iterable[Section]:
    yield Section(
        "certified",
        "What is certified",
        "Of all images, how many keep their class, their explanation, or both for every image that is nearer "
        "than the radius.",
        [View("", list(_certified(found)))],
    )
    if "curves" in found:
        yield Section(
            "perturbed",
            "Deletion and insertion",
            "Tokens are taken out in the order of an explanation, and a model is asked each time. Where the "
            "explanation points at what the model uses, its answer falls fast if the most relevant go first "
            "(deletion), and stands if the least relevant go first: read from right to left, that is the "
            "insertion curve. Images that lack tokens resemble nothing that a model was trained on: compare "
            "curves with each other.",
            list(_perturbed(found)),
        )
        yield Section(
            "certified-deletion",
            "Is the certified map right about the model?",
            "Tokens certified in are taken out, as many that are certified out, and as many at random. Where "
            "the map points at what the model needs, the answer suffers most without the first.",
            [View("", [_deleted(found)])],
        )
    if "adversarial" in found:
        yield Section(
            "attacked",
            "Under attack",
            "Gradients look for an image nearby that the model gives another class, or explains by other "
            f"tokens. The smoothed model is judged on {found['adversarial']['judged_on']:,} fresh copies, "
            "with attack and without: part of what is lost is chance. An attack that fails proves nothing; "
            + (
                "at a certificate that one broke the evaluation stopped, so this is not of all images."
                if "broken" in found and _partial(found["data"])
                else "a certificate that one broke would have stopped the evaluation."
            ),
            list(_attacked(found["adversarial"]["attacks"])),
        )
    if "segmentation" in found:
        yield Section(
            "masks",
            "Explanations against masks",
            "A mask says where the object is, not what a model should look at.",
            [View("", list(_masked(found)))],
        )
    if "mosaics" in found:
        yield Section(
            "mosaics",
            "Four images in one",
            "How much of a class's explanation lies on the image of that class; by chance a quarter would.",
            [View("", list(_mosaics(found["mosaics"])))],
        )


def _partial(data: Json) -> bool:
    """Whether an evaluation has images to do."""
    return bool(data["evaluated"] + data["failed"] + data["repeated"] < data["chosen"])


def _certified(found: Json) -> Iterable[Chart]:
    tables = {
        "certified": ("Certified", "Share of all images."),
        "certified_accuracy": ("Certified accuracy", "Share of images with a label: certified, and right."),
    }
    for name, (title, words) in tables.items():
        if name in found:
            lines = [_line(CLAIM[claim], found[name], "radius", claim) for claim in CLAIMS]
            yield Chart(name.replace("_", "-"), title, words, RADIUS, "share of images", lines)
    if "map" in found:
        rows = found["map"]
        lines = [_line(side, rows, "radius", side) for side in ("in", "out")]
        rest = [(row["radius"], 1 - row["in"]["value"] - row["out"]["value"]) for row in rows]
        lines.append(Line("open", [(_number(radius), round(share, 6), None, None) for radius, share in rest]))
        words = "Mean share of an image's tokens that are certified in or out at a radius."
        yield Chart("map", "Certified map", words, RADIUS, "share of tokens", lines)


def _perturbed(found: Json) -> Iterable[View]:
    curves = found["curves"]
    titles = {
        "positive": ("Deletion", "The most relevant tokens go first: lower is better."),
        "negative": ("Insertion", "The least relevant tokens go first: higher is better."),
    }
    for what in ASKED:
        for fill in dict.fromkeys(curve["fill"] for curve in curves):
            of = [curve for curve in curves if curve["fill"] == fill and what in curve]
            if not of:
                continue
            parts: list[Chart | Table] = []
            for order, (title, words) in titles.items():
                lines = [
                    Line(
                        f"{curve['explanation']} explanation, {curve['model']} model",
                        [
                            _point(x, figure)
                            for x, figure in zip(curve["removed"], curve[what]["curve"], strict=True)
                            if "value" in figure
                        ],
                    )
                    for curve in of
                    if curve["order"] == order
                ]
                name = f"{title.lower()}-{what}-{fill}"
                parts.append(Chart(name, title, words, "share of tokens removed", ASKS[what], lines))
            rows = [
                (titles[curve["order"]][0], curve["explanation"], curve["model"], *_cells(curve[what]["auc"]))
                for curve in of
            ]
            columns = ("curve", "explanation", "model", *FIGURE)
            words = "By the trapezoid rule, from none to nine tenths removed: at most 0.9."
            parts.append(Table(f"areas-{what}-{fill}", "Areas under the curves", words, columns, rows))
            yield View(f"{ASKS[what]}; filled with {fill}", parts)


def _deleted(found: Json) -> Table:
    columns = ["removed", "filled with", "model", "tokens, on average"]
    rows = found["certified_deletion"]
    asked = [what for what in ASKED if any(what in row for row in rows)]
    for what in asked:
        columns += [ASKS[what], "from", "to"]
    columns.append("images")
    return Table(
        "certified-deletion",
        "Certified deletion",
        "Filled with none is the image as it is, of the images that have such a set. Intervals of 95 %.",
        columns,
        [
            (
                row["tokens"],
                row["fill"],
                row["model"],
                _cells(row["count"])[0],
                *(cell for what in asked for cell in _cells(row[what])[:3]),
                _cells(row[asked[0]])[3],
            )
            for row in rows
        ],
    )


def _attacked(attacks: Sequence[Json]) -> Iterable[View]:
    of: dict[tuple[str, str], list[Json]] = {}
    for attack in attacks:
        of.setdefault((attack["model"], attack["target"]), []).append(attack)
    for what, words in ATTACKS_ASK.items():
        if not any(what in attack[ATTACKED] for attack in attacks):
            continue
        lines = []
        for (model, target), rows in of.items():
            rows = [row for row in rows if row["norm"] == "linf" and "value" in row[ATTACKED][what]]
            points = [_point(row["budget"], row[ATTACKED][what]) for row in rows]
            start = [_point(0, row[UNTOUCHED][what]) for row in rows[:1]]
            lines.append(Line(f"{model} model, attack on its {CLAIM[target]}", start + points))
        yield View(
            words,
            [
                Chart(
                    f"attacked-{what}",
                    "Under ℓ∞ attacks",
                    "Each value of a pixel moves by at most so many 255ths; 0 is the image as it is.",
                    "ℓ∞ budget, 255ths",
                    words,
                    lines,
                ),
                Table(
                    f"attacks-{what}",
                    "Every attack",
                    "ℓ₂ budgets are shares of the certified radius of what is attacked, of images that have "
                    "one; inside it the smoothed model's certificate holds against every attack, with "
                    "probability 1 − α over its noise, and the plain model has none. Intervals of 95 %.",
                    (
                        *("model", "attack on its", "budget", "ℓ₂ length, on average"),
                        *("without attack", "from", "to", "attacked", *FIGURE[1:]),
                    ),
                    [
                        (
                            row["model"],
                            CLAIM[row["target"]],
                            f"ℓ∞ {row['budget']:g}/255"
                            if row["norm"] == "linf"
                            else f"ℓ₂ {row['budget']:g} × radius",
                            _cells(row["distance"])[0],
                            *_cells(row[UNTOUCHED][what])[:3],
                            *_cells(row[ATTACKED][what]),
                        )
                        for rows in of.values()
                        for row in rows
                    ],
                ),
            ],
        )


def _masked(found: Json) -> Iterable[Chart | Table]:
    measures = ("pixel_accuracy", "mIoU", "mAP")
    yield Table(
        "segmentation",
        "Segmentation",
        "The explanation, cut at its mean, as the object. Intervals of 95 %.",
        ("explanation", "measure", *FIGURE),
        [
            (row["explanation"], name.replace("_", " "), *_cells(row[name]))
            for row in found["segmentation"]
            for name in measures
        ],
    )
    for name, title in (("pixel_accuracy", "Pixel accuracy"), ("mIoU", "mIoU")):
        lines = [
            _line(row["explanation"], row["by_threshold"], "threshold", name) for row in found["segmentation"]
        ]
        words = "Cut at a share of the explanation's range instead of at its mean."
        file = f"{title.lower().replace(' ', '-')}-by-threshold"
        yield Chart(file, f"{title} by threshold", words, "threshold", title, lines)
    rows = found["certified_localisation"]
    names = {
        "certified_in": "certified in",
        "plain": "as many, plain explanation",
        "any": "as many at random",
    }
    lines = [_line(name, rows, "radius", key) for key, name in names.items()]
    words = "Of the tokens that are certified in at a radius, how many touch the object."
    yield Chart("certified-localisation", "Certified localisation", words, RADIUS, "share of tokens", lines)


def _mosaics(found: Json) -> Iterable[Chart | Table]:
    rows = [
        (explanation, what.replace("_", " "), *_cells(found[what][explanation]))
        for what in ("explained", "in_its_quarter")
        for explanation in found[what]
    ]
    words = "Explained: the class that is explained is one of the four. Intervals of 95 %."
    yield Table("mosaics", "The grid pointing game", words, ("explanation", "measure", *FIGURE), rows)
    line = _line("certified in", found["certified_in"], "radius", "in_its_quarter")
    words = "Of the tokens certified in, how many lie on the image of their class."
    yield Chart("mosaics-certified-in", "Certified in its quarter", words, RADIUS, "share of tokens", [line])


FIGURE = ("value", "from", "to", "images")
"""The columns of a figure, `from` and `to` the edges of its interval."""


def _cells(figure: Json) -> tuple[float | None, float | None, float | None, int]:
    value, low, high = (
        None if name not in figure else _number(figure[name]) for name in ("value", "low", "high")
    )
    return value, low, high, int(figure["images"])


def _line(name: str, rows: Sequence[Json], x: str, what: str) -> Line:
    """A point a row, but for rows of no images."""
    return Line(name, [_point(row[x], row[what]) for row in rows if "value" in row[what]])


def _point(x: Any, figure: Json) -> tuple[float, float, float, float]:
    return _number(x), _number(figure["value"]), _number(figure["low"]), _number(figure["high"])


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise TypeError(f"{value!r} is no number")
    return float(value)
