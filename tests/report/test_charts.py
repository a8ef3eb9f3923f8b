"""What is drawn, on tables that are written down here."""

from typing import Any

import pytest

from fvit.errors import FvitError
from fvit.report.charts import BINS, Chart, Section, Table, histogram, sections_of


def figure(value: float, images: int = 4) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "images": images}


def at(radius: float, **values: float) -> dict[str, Any]:
    return {"radius": radius, **{name: figure(value) for name, value in values.items()}}


def of_certificates() -> dict[str, Any]:
    return {
        "abstained": {"class": figure(0.25), "attention": figure(0.5)},
        "certified": [
            at(0.0, **{"class": 0.75}, attention=0.5, both=0.5),
            at(0.1, **{"class": 0.5}, attention=0.25, both=0.25),
        ],
        "map": [at(0.0, **{"in": 0.2}, out=0.5), at(0.1, **{"in": 0.1}, out=0.4)],
    }


def evaluated() -> dict[str, Any]:
    """With every part that an evaluation can have."""
    curves = [
        {
            "explanation": explanation, "order": order, "fill": fill, "model": "plain", "removed": [0.0, 0.1],
            **{
                what: {"curve": [figure(1.0), figure(level)], "auc": figure(0.9 * level)}
                for what in ("accuracy", "kept", "share")
            },
        }
        for explanation, level in (("plain", 0.25), ("smoothed", 0.75))
        for order in ("positive", "negative")
        for fill in ("mean", "blur")
    ]  # fmt: skip
    attacks = [
        {
            "model": model, "target": "class", "norm": norm, "budget": budget, "distance": figure(budget),
            "none": dict.fromkeys(("accuracy", "kept", "overlap"), figure(0.9)),
            "attacked": dict.fromkeys(("accuracy", "kept", "overlap"), figure(level)),
        }
        for model, level in (("plain", 0.25), ("smoothed", 0.75))
        for norm, budget in (("linf", 2), ("linf", 8), ("l2", 0.5))
    ]  # fmt: skip
    removal = {"tokens": "in", "count": figure(2.5), "fill": "none", "model": "plain"}
    cut = {"pixel_accuracy": figure(0.6), "mIoU": figure(0.4)}
    return of_certificates() | {
        "certified_accuracy": [at(0.0, **{"class": 0.5}, attention=0.5, both=0.5)],
        "curves": curves,
        "certified_deletion": [
            {**removal, "accuracy": figure(0.5), "kept": figure(1.0), "share": figure(0.8)},
            {**removal, "fill": "mean", **{what: {"images": 0} for what in ("accuracy", "kept", "share")}},
        ],
        "adversarial": {"copies_a_step": 8, "judged_on": 100, "attacks": attacks},
        "segmentation": [
            {"explanation": name, **cut, "mAP": figure(0.7), "by_threshold": [{"threshold": 0.5, **cut}]}
            for name in ("plain", "smoothed")
        ],
        "certified_localisation": [
            at(0.0, certified_in=0.9, plain=0.8, any=0.3),
            {"radius": 0.1, "certified_in": {"images": 0}, "plain": {"images": 0}, "any": {"images": 0}},
        ],
        "mosaics": {
            "explained": {"plain": figure(1.0), "smoothed": figure(0.5)},
            "in_its_quarter": {"plain": figure(0.4), "smoothed": {"images": 0}},
            "certified_in": [{"radius": 0.0, "in_its_quarter": figure(0.6)}],
        },
    }


def charts(sections: list[Section]) -> dict[str, Chart]:
    parts = [part for section in sections for view in section.views for part in view.parts]
    return {part.id: part for part in parts if isinstance(part, Chart)}


def tables(sections: list[Section]) -> dict[str, Table]:
    parts = [part for section in sections for view in section.views for part in view.parts]
    return {part.id: part for part in parts if isinstance(part, Table)}


def test_certificates_alone_give_what_is_certified_and_the_map() -> None:
    sections = sections_of(of_certificates())
    assert [section.id for section in sections] == ["certified"]
    found = charts(sections)
    assert set(found) == {"certified", "map"}
    of_class, attention, both = found["certified"].lines
    assert (of_class.name, attention.name, both.name) == ("class", "explanation", "both")
    assert of_class.points == [(0.0, 0.75, 0.65, 0.85), (0.1, 0.5, 0.4, 0.6)]
    inside, outside, unknown = found["map"].lines
    assert inside.points[1][:2] == (0.1, 0.1) and outside.points[1][:2] == (0.1, 0.4)
    assert unknown.points == [(0.0, 0.3, None, None), (0.1, 0.5, None, None)]  # the three sum to 1


def test_an_evaluation_gives_every_figure_that_it_has() -> None:
    sections = sections_of(evaluated())
    assert [section.id for section in sections] == [
        "certified", "perturbed", "certified-deletion", "attacked", "masks", "mosaics",
    ]  # fmt: skip
    found = charts(sections)
    assert {"certified-accuracy", "miou-by-threshold", "certified-localisation"} < set(found)
    views = sections[1].views
    assert len(views) == 3 * 2 and views[0].name == "the answer is the label; filled with mean"
    deletion = found["deletion-share-blur"]
    assert [line.name for line in deletion.lines] == [
        "plain explanation, plain model", "smoothed explanation, plain model",
    ]  # fmt: skip
    assert [point[:2] for point in deletion.lines[1].points] == [(0.0, 1.0), (0.1, 0.75)]
    # A radius at which no image has a token certified in has no point.
    assert [point[:2] for point in found["certified-localisation"].lines[0].points] == [(0.0, 0.9)]


def test_tables_have_a_cell_for_every_figure_and_none_where_there_is_none() -> None:
    found = tables(sections_of(evaluated()))
    assert found["areas-kept-mean"].rows[0] == ("Deletion", "plain", "plain", 0.225, 0.125, 0.325, 4)
    deletion = found["certified-deletion"]
    assert deletion.columns[-4:] == ["share of the explained class", "from", "to", "images"]
    assert deletion.rows[0] == (
        "in", "none", "plain", 2.5, 0.5, 0.4, 0.6, 1.0, 0.9, 1.1, 0.8, pytest.approx(0.7), 0.9, 4,
    )  # fmt: skip
    assert deletion.rows[1][4:] == (None,) * 9 + (0,)
    assert all(len(row) == len(table.columns) for table in found.values() for row in table.rows)
    assert found["segmentation"].rows[0][:3] == ("plain", "pixel accuracy", 0.6)
    assert found["mosaics"].rows[3] == ("smoothed", "in its quarter", None, None, None, 0)


def test_attacks_start_at_the_image_as_it_is_and_l2_ones_are_in_the_table_alone() -> None:
    found = evaluated()
    sections = sections_of(found)
    plain, smoothed = charts(sections)["attacked-accuracy"].lines
    assert (plain.name, smoothed.name) == (
        "plain model, attack on its class", "smoothed model, attack on its class",
    )  # fmt: skip
    assert [point[:2] for point in plain.points] == [(0, 0.9), (2, 0.25), (8, 0.25)]
    rows = tables(sections)["attacks-overlap"].rows
    assert [row[:4] for row in rows[1:3]] == [
        ("plain", "class", "ℓ∞ 8/255", 8), ("plain", "class", "ℓ₂ 0.5 × radius", 0.5),
    ]  # fmt: skip
    assert rows[5][4] == 0.9 and rows[5][7] == 0.75
    # No image has a radius: there is nothing to attack within a share of it.
    for what in found["adversarial"]["attacks"]:
        what["attacked"]["kept"] = what["none"]["kept"] = {"images": 0}
    sections = sections_of(found)
    assert not any(line.points for line in charts(sections)["attacked-kept"].lines)
    assert tables(sections)["attacks-kept"].rows[0][4:] == (None,) * 6 + (0,)


def test_without_labels_nothing_is_asked_of_them() -> None:
    found = evaluated()
    del found["certified_accuracy"]
    for each in (*found["curves"], *found["certified_deletion"]):
        del each["accuracy"]
    for each in found["adversarial"]["attacks"]:
        del each["none"]["accuracy"], each["attacked"]["accuracy"]
    sections = sections_of(found)
    assert not any("accuracy" in each for each in charts(sections) if not each.startswith("pixel"))
    assert [view.name.partition(";")[0] for view in sections[1].views[:2]] == ["the answer stays"] * 2
    assert len(tables(sections)["certified-deletion"].columns) == 4 + 2 * 3 + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"certified": [{"radius": 0.0}]},
        {"certified": {"radius": 1}},
        {"certified": [at(0.0, **{"class": 1}, attention=1, both=1) | {"radius": "0"}]},
        {"map": [{"radius": 0.0, "in": {"images": 0}, "out": {"images": 0}}]},
        {"curves": [{}]},
        {"segmentation": 3},
        {"mosaics": []},
    ],
)
def test_what_is_no_table_is_told(changes: dict[str, Any]) -> None:
    with pytest.raises(FvitError, match=r"evaluation\.json holds no tables of this fvit"):
        sections_of(evaluated() | changes)


def test_every_value_is_in_one_bin_of_equal_width() -> None:
    bins = histogram([0.0, 0.1, 0.299, 0.3, 0.6])
    assert len(bins) == BINS
    assert sum(count for _, _, count in bins) == 5
    assert bins[0] == (0.0, 0.02, 1) and bins[-1] == (0.58, 0.6, 1)
    assert bins[15] == (0.3, 0.32, 1) and bins[14] == (0.28, 0.3, 1)
    assert histogram([]) == []
    assert sum(count for _, _, count in histogram([0.5])) == 1
