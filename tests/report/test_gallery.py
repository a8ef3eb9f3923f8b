"""Which images come first, and by what they are chosen."""

from typing import Any

from fvit.certificates.record import Certificate
from fvit.report.gallery import Shown, columns_of, groups_of
from tests.evaluation.cases import certificate

NAMES = {0: "x", 1: "y", 2: "z"}


def shown(
    made: Certificate,
    *,
    label: int | None = None,
    plain: int | None = None,
    broken: bool = False,
    image: str = "",
) -> Shown:
    of = None if label is None else (label, NAMES[label])
    made = made.model_copy(update={"image": image})
    return Shown.of(made, label=of, plain=plain, broken=broken, names=NAMES)


def case(**told: Any) -> Certificate:
    return certificate(**({"map_radii": (0.3, 0.2, 0.0, -0.1)} | told))


def ordered() -> list[Shown]:
    """From the worst to the best."""
    return [
        shown(case(radius=0.5), label=1, image="certified and wrong, far"),
        shown(case(radius=0.3), label=1, image="certified and wrong, near"),
        shown(case(radius=0.0), label=2, image="wrong"),
        shown(case(radius=0.0), label=0, image="no class"),
        shown(case(attention=0.0), label=0, image="no explanation"),
        shown(case(radius=0.5, attention=0.1), label=0, image="explanation near"),
        shown(case(radius=0.2, attention=0.3), label=0, image="class nearer than that"),
        shown(case(radius=0.5, attention=0.4), label=0, plain=1, image="best"),
    ]


def test_the_worst_come_first() -> None:
    best_first = ordered()[::-1]
    found = sorted(best_first, key=lambda each: each.badness)
    assert [each.image for each in found] == [each.image for each in ordered()]
    broken = shown(case(radius=0.5, attention=0.4), label=0, broken=True, image="broken")
    assert min([*best_first, broken], key=lambda each: each.badness) is broken


def test_groups_hold_those_that_they_name() -> None:
    assert groups_of(ordered()) == {
        "wrong class, certified": [0, 1],
        "wrong class": [0, 1, 2],
        "right class": [3, 4, 5, 6, 7],
        "class not certified": [2, 3],
        "explanation not certified": [4],
        "class and explanation certified": [0, 1, 5, 6, 7],
        "plain model says another class": [7],
        "smoothing finds the right class": [7],
    }
    assert groups_of([shown(case()), shown(case(), broken=True)])["broken by an attack"] == [1]
    unlabelled = [shown(case())]
    assert groups_of(unlabelled) == {"class and explanation certified": [0]}


def test_columns_have_what_is_known_of_each() -> None:
    columns = columns_of(ordered())
    assert columns["class"] == ["x"] * 8
    assert columns["label"] == ["y", "y", "z", "x", "x", "x", "x", "x"]
    assert columns["plain"] == [None] * 7 + ["y"]
    assert columns["class_radius"] == [0.5, 0.3, 0.0, 0.0, 0.3, 0.5, 0.2, 0.5]
    assert (columns["in"][0], columns["out"][0], columns["tokens"][0]) == (2, 1, 4)
    assert "answer" not in columns
    assert not {"label", "broken"} & columns_of([shown(case())]).keys()
    assert columns_of([shown(case(), broken=True), shown(case())])["broken"] == [True, None]
    assert columns_of([shown(case(), plain=7)])["plain"] == ["7"]  # a class whose name is not known
