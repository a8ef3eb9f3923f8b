"""The images of a report: the worst first, what is said of each, and what they can be chosen by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fvit.certificates.record import Certificate

Label = tuple[int, str]
"""Index and name of a class."""


@dataclass(frozen=True)
class Shown:
    """One image. label: the class that is right; plain: what the classifier says of the image as it is; each
    None where it is not known. broken: whether an attack refuted what is certified. inside, outside: tokens
    certified in and out at any radius, None for means."""

    image: str
    label: str | None
    said: str
    plain: str | None
    right: bool | None
    plain_right: bool | None
    broken: bool
    class_radius: float
    attention_radius: float
    inside: int | None
    outside: int | None
    tokens: int
    copies: int
    answer: str | None
    badness: tuple[float, ...]

    @classmethod
    def of(
        cls,
        certificate: Certificate,
        *,
        label: Label | None,
        plain: int | None,
        broken: bool,
        names: Mapping[int, str],
    ) -> Shown:
        """names: of classes, by their index; a class that has none there goes by its index."""
        of_class, attention = certificate.class_, certificate.attention
        radii = None if attention.map_radii is None else np.asarray(attention.map_radii)
        right = None if label is None else label[0] == of_class.index
        return cls(
            image=certificate.image,
            label=None if label is None else label[1],
            said=of_class.label,
            plain=None if plain is None else names.get(plain, str(plain)),
            right=right,
            plain_right=None if label is None or plain is None else label[0] == plain,
            broken=broken,
            class_radius=of_class.radius_l2,
            attention_radius=attention.radius_l2,
            inside=None if radii is None else int((radii > 0).sum()),
            outside=None if radii is None else int((radii < 0).sum()),
            tokens=len(attention.votes),
            copies=certificate.copies,
            answer=None if certificate.decision is None else certificate.decision.answer,
            badness=badness(certificate, right=right, broken=broken),
        )


def badness(certificate: Certificate, *, right: bool | None, broken: bool) -> tuple[float, ...]:
    """By which the worst come first: broken by an attack; certified and wrong, the farther the worse; wrong;
    class not certified, the fewer copies agree the worse; explanation not certified; then by the nearer of
    the two radii. right: whether the class is, None where that is not known."""
    if broken:
        return (-1,)
    of_class, attention = certificate.class_, certificate.attention
    if right is False and not of_class.abstained:
        return (0, -of_class.radius_l2)
    if right is False:
        return (1, -of_class.p_lower)
    if of_class.abstained:
        return (2, of_class.p_lower)
    if attention.abstained:
        return (3, of_class.radius_l2)
    return (4, min(of_class.radius_l2, attention.radius_l2))


def groups_of(shown: Sequence[Shown]) -> dict[str, list[int]]:
    """What images can be chosen by: the places of those that each name is true of; none of none."""
    tests = {
        "broken by an attack": lambda each: each.broken,
        "wrong class, certified": lambda each: each.right is False and each.class_radius > 0,
        "wrong class": lambda each: each.right is False,
        "right class": lambda each: each.right is True,
        "class not certified": lambda each: each.class_radius == 0,
        "explanation not certified": lambda each: each.attention_radius == 0,
        "class and explanation certified": lambda each: min(each.class_radius, each.attention_radius) > 0,
        "plain model says another class": lambda each: each.plain is not None and each.plain != each.said,
        "smoothing loses the right class": lambda each: each.plain_right is True and each.right is False,
        "smoothing finds the right class": lambda each: each.plain_right is False and each.right is True,
        "decided: certified": lambda each: each.answer == "certified",
        "decided: not certified": lambda each: each.answer == "not certified",
        "undecided": lambda each: each.answer == "undecided",
    }
    found = {name: [place for place, each in enumerate(shown) if test(each)] for name, test in tests.items()}
    return {name: places for name, places in found.items() if places}


def columns_of(shown: Sequence[Shown]) -> dict[str, list[Any]]:
    """A list a column, as the page has them and gives them as CSV; columns of which nothing is known are
    left out."""
    columns: dict[str, list[Any]] = {
        "image": [each.image for each in shown],
        "broken": [each.broken or None for each in shown],
        "label": [each.label for each in shown],
        "class": [each.said for each in shown],
        "plain": [each.plain for each in shown],
        "class_radius": [each.class_radius for each in shown],
        "attention_radius": [each.attention_radius for each in shown],
        "in": [each.inside for each in shown],
        "out": [each.outside for each in shown],
        "tokens": [each.tokens for each in shown],
        "copies": [each.copies for each in shown],
        "answer": [each.answer for each in shown],
    }
    return {name: column for name, column in columns.items() if any(value is not None for value in column)}
