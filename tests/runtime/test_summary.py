"""Counts of records against a count by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.runtime.summary import Summary, check_place
from tests.runtime.test_journal import TERMS, picture, record_of


def certificate(
    terms: Terms = TERMS, *, attention: dict[str, Any] | None = None, **of_class: Any
) -> Certificate:
    """Copies that agree on class 0, with other claims."""
    record = record_of(picture(1), terms)
    record["class"] |= of_class
    record["attention"] |= attention or {}
    return Certificate.model_validate(record)


def summary(terms: Terms = TERMS, *, labelled: bool = True, images: int = 4) -> Summary:
    return Summary(terms, images, radii=[0.0, 0.3], asked=True, labelled=labelled)


CASES: list[tuple[dict[str, Any], int]] = [
    ({"radius_l2": 0.5}, 0),
    ({"radius_l2": 0.3}, 1),
    ({"radius_l2": 0.2}, 0),
    ({"radius_l2": 0.0, "abstained": True}, 0),
]
"""Claims on the class 0, and the right class: right and far; wrong and just far enough; right and near;
nothing."""


def test_abstentions_of_one_image_are_numbers() -> None:
    said = summary(images=1)
    said.add(certificate(radius_l2=0.0, abstained=True), right=0, before=False)
    assert json.dumps(said.to_dict()["abstained"]) == '{"class": 1, "attention": 0}'


def test_shares_are_of_all_images_and_an_abstention_is_no_class() -> None:
    said = summary()
    for claim, right in CASES:
        said.add(certificate(**claim), right=right, before=False)
    found = said.to_dict()
    assert [(at["radius"], at["class"], at["accuracy"]) for at in found["certified"]] == [
        (0.0, 0.75, 0.5), (0.3, 0.5, 0.25)
    ]  # fmt: skip
    assert found["abstained"] == {"class": 1, "attention": 0}


def test_the_table_says_the_same() -> None:
    said = summary()
    for claim, right in CASES:
        said.add(certificate(**claim), right=right, before=False)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(said.table())
    lines = [line.split("│")[1:-1] for line in captured.get().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["0", "75.0 %", "100.0 %", "50.0 %"], ["0.3", "50.0 %", lines[1][2].strip(), "25.0 %"]
    ]  # fmt: skip


def test_explanations_are_counted_by_their_own_radius() -> None:
    said = summary(labelled=False)
    for attention in ({"radius_l2": 0.4}, {"radius_l2": 0.1}, {"radius_l2": 0.0, "abstained": True}):
        said.add(certificate(attention=attention), right=None, before=False)
    found = said.to_dict()
    assert [at["attention"] for at in found["certified"]] == [2 / 3, 1 / 3]
    assert found["abstained"]["attention"] == 1
    assert "accuracy" not in found["certified"][0]


def test_what_was_not_done_now_is_counted_apart() -> None:
    said = summary(images=6)
    said.failed, said.repeated = 1, 1
    said.add(certificate(), right=0, before=True)
    said.add(certificate(), right=0, before=False)
    found = said.to_dict()
    assert {name: found[name] for name in ("images", "records", "before", "failed", "repeated", "left")} == {
        "images": 6, "records": 2, "before": 1, "failed": 1, "repeated": 1, "left": 2
    }  # fmt: skip
    assert found["copies"] == TERMS.n


def test_decisions_are_counted_and_the_terms_are_said(tmp_path: Path) -> None:
    terms = replace(TERMS, radius=0.1)
    said = summary(terms)
    said.add(certificate(terms), right=0, before=False)
    said.write(tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())
    assert sum(found["decisions"].values()) == 1
    assert found["terms"] == {
        "sigma": 0.25, "n": 100, "alpha": 0.001, "k": [2], "beta": 0.8, "aggregate": "vote", "radius": 0.1,
        "seed": 7,
    }  # fmt: skip
    assert "decisions" not in summary().to_dict()


def test_nothing_is_certified_of_nothing() -> None:
    assert summary().to_dict()["certified"] == []


def test_a_summary_takes_the_place_of_nothing_else(tmp_path: Path) -> None:
    for name in ("certificates.jsonl", "thumbnails", "a.png"):
        with pytest.raises(FvitError, match=r"give it a name that ends in \.json"):
            check_place(tmp_path / "out" / name, out=tmp_path / "out")
    (tmp_path / "annotations.json").write_text('{"images": []}')
    with pytest.raises(FvitError, match="is there, and no summary: choose another place"):
        check_place(tmp_path / "annotations.json", out=None)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FvitError, match=r"cannot write .*absent/s\.json: No such file or directory"):
        summary().write(tmp_path / "absent" / "s.json")
    with pytest.raises(FvitError, match=r"absent/s\.json: .*absent is no folder to write to"):
        check_place(tmp_path / "absent" / "s.json", out=tmp_path / "out")
    for place in (tmp_path, Path("/dev/null")):
        with pytest.raises(FvitError, match="is no regular file"):
            check_place(place, out=None)
    check_place(tmp_path / "s.json", out=None)
    summary().write(tmp_path / "s.json")
    check_place(tmp_path / "s.json", out=None)
    check_place(tmp_path / "to" / "s.json", out=tmp_path / "to" / "out")
