"""What a report says in words at its beginning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fvit.certificates.record import Certificate
from fvit.report.charts import reading_tables


@dataclass(frozen=True)
class Summary:
    """headline: figures that are seen first, each with what it is. terms: (name, value, in words). says, not:
    what the certificates claim, and what they do not."""

    headline: Sequence[tuple[str, str]]
    terms: Sequence[tuple[str, str, str]]
    says: str
    not_said: str


def summary_of(first: Certificate, found: Mapping[str, Any], *, images: int, broken: int) -> Summary:
    """first: one of the records, which all have its terms. found: tables (charts.py), of which FvitError is
    raised where they are none. images: how many have records; broken: of how many an attack refuted them."""
    with reading_tables():
        figures = [*_counted(found.get("data"), images=images, broken=broken), *_figures(found)]
    return Summary(
        headline=figures,
        terms=list(_terms(first, found)),
        says=_says(first),
        not_said=(
            "that the class is right, that the explanation would convince a person, or anything of images "
            "further away, of other changes than small ones of pixels, or of the plain model."
        ),
    )


def _counted(data: Mapping[str, Any] | None, *, images: int, broken: int) -> Iterator[tuple[str, str]]:
    """data: what an evaluation says of its images, which may be others than those that have records."""
    if broken:
        yield f"{broken:,}", "broken by an attack: a bug, unless it is chance"
    if data is None or data["evaluated"] == images:
        yield f"{images:,}", "images" if images > 1 else "image"
    else:
        yield f"{data['evaluated']:,}", "images evaluated"
        yield f"{images:,}", "images with a record, as below"
    if data is not None and data["failed"]:
        yield f"{data['failed']:,}", "could not be read"


def _figures(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    words = {"plain": "plain model is right", "smoothed": "smoothed model is right"}
    figures = [(words[model], figure) for model, figure in found.get("accuracy", {}).items()]
    shown = [(_percent(figure["value"]), words) for words, figure in figures if "value" in figure]
    certified = {"class": "class certified", "attention": "explanation certified"}
    shown += [(_percent(1 - found["abstained"][claim]["value"]), words) for claim, words in certified.items()]
    return shown


def _terms(first: Certificate, found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    claim, terms = first.attention, first.terms
    rows, columns = claim.grid
    listed = [
        ("σ", f"{terms.sigma:g}", "noise of each copy, in pixels of [0, 1]"),
        ("n", f"{terms.n:,}", "noisy copies of an image" + ("" if terms.radius is None else ", at most")),
        ("α", f"{terms.alpha:g}", "probability that anything claimed of an image is false"),
        ("k", ", ".join(map(str, terms.k)), f"tokens of an explanation, of {rows} × {columns}"),
        ("β", f"{terms.beta:g}", f"share of them that stays: at least {kept(claim.k, beta=terms.beta)}"),
    ]  # fmt: skip
    if terms.radius is not None:
        listed.append(("r", f"{terms.radius:g}", "ℓ₂ radius that was to be decided"))
    averaged = {"vote": "the share of copies that have a token among their k largest",
                "mean": "the mean attribution of the copies"}  # fmt: skip
    listed.append(("aggregate", terms.aggregate, averaged[terms.aggregate]))
    if "explanation" in found:
        of = found.get("explained")
        listed.append(("explanation", str(found["explanation"]), "" if of is None else f"of class: {of}"))
    height, width = first.size
    listed += [
        ("size", f"{width} × {height}", "pixels of the images that radii speak of"),
        ("engine", first.engine.name, f"{first.engine.device}, {first.engine.precision}"),
        ("bundle", first.bundle[:12], "the model, by SHA-256 of its fvit.json"),
    ]
    return listed


def _says(first: Certificate) -> str:
    claim = first.attention
    said = (
        "for every image nearer than the radius to this one (ℓ₂, pixels in [0, 1], at the model’s size) the "
        f"smoothed model names the same class, and keeps at least {kept(claim.k, beta=claim.beta)} of the "
        f"{claim.k} outlined tokens in its explanation."
    )
    if claim.map_radii is not None:
        said += (
            f" On the map a token keeps its own side: it is in where most noisy copies have it among their "
            f"{claim.k} largest, out where most have not."
        )
    return (
        said
        + f" That any of this is false of an image has probability {first.alpha:g} at most over the noise."
    )


def kept(k: int, *, beta: float) -> int:
    """The fewest of k tokens that are no break. What floats add to a whole number is no token."""
    return math.ceil(beta * k - 1e-9)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
