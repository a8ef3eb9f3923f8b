"""What is read from a folder, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fvit.errors import FvitError
from fvit.evaluation.keeping import NAME as MEASURES
from fvit.evaluation.measures import Judged
from fvit.report.left import Left
from fvit.runtime.journal import NAME
from fvit.runtime.thumbnails import FOLDER
from fvit.runtime.truth import write_truth
from tests.evaluation.cases import certificate, measures
from tests.report.conftest import numbered, write_records

RECORD = certificate(map_radii=(0.3, 0.2, 0.0, -0.1))


def refusal(folder: Path) -> str:
    with pytest.raises(FvitError) as caught:
        list(Left.of(folder).certificates())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_records_with_their_labels_and_what_the_plain_model_says(folder: Path) -> None:
    write_records(folder, [numbered(RECORD, number) for number in range(3)])
    write_truth(folder, [(f"{1:064x}", 2)], names=("x", "y", "z"))
    write_truth(folder, [(f"{2:064x}", 1)], names=("x", "y", "z"))  # of another run: the first stays
    line = measures(plain=Judged(index=1, share=0.5)).model_copy(update={"pixels_sha256": f"{1:064x}"})
    (folder / MEASURES).write_text('{"bundle":""}\n' + line.model_dump_json(exclude_none=True) + "\n")
    left = Left.of(folder)
    found = list(left.certificates())
    assert [each.image for each in found] == ["0.png", "1.png", "2.png"]
    assert [left.label(each) for each in found] == [None, (2, "z"), (1, "y")]
    assert left.plain == {(f"{1:064x}", 7): 1}
    assert left.evaluation is None


def test_a_record_that_a_crash_cut_off_is_left_out(folder: Path) -> None:
    write_records(folder, [numbered(RECORD, number) for number in range(2)])
    text = (folder / NAME).read_text()
    (folder / NAME).write_text(text[:-40])
    assert len(list(Left.of(folder).certificates())) == 1
    (folder / NAME).write_text(text[:-40] + "\n" + text)
    assert "line 2 is no JSON: broken, or cut off" in refusal(folder)


def test_a_folder_without_records_says_what_to_give(folder: Path, tmp_path: Path) -> None:
    assert refusal(folder) == (
        f"{folder} holds no {NAME}: give a folder that fvit-certify --out or fvit-evaluate made"
    )
    assert "is no folder" in refusal(tmp_path / "absent")
    (folder / NAME).touch()
    assert "is empty" in refusal(folder)
    (folder / NAME).write_text('{"image": "a.png", "cut')
    assert "line 1 is no JSON" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": 3}, "line 2 is no record of this fvit: fvit-verify says"),
        ({"attention": {"votes": [100, 100]}}, "line 2 contradicts itself"),
        ({"attention": {"tokens": [0, 4]}}, "line 2 contradicts itself"),
        ({"attention": {"grid": [2, 3]}}, "line 2 contradicts itself"),
        ({"attention": {"map_radii": [0.1]}}, "line 2 contradicts itself"),
        ({"attention": {"votes": [0, 0, 0, 0]}}, "line 2 contradicts itself"),
        ({"sigma": 0.5}, "line 2 answers another question (sigma = 0.5, not 0.25) than line 1"),
        ({"attention": {"beta": 0.5}}, "line 2 answers another question (beta = 0.5, not 0.8)"),
        ({"bundle": "1" * 64}, "line 2 answers another question (of bundle 111111111111…"),
    ],
)
def test_what_is_no_record_or_answers_another_question_is_refused(
    folder: Path, change: dict[str, Any], said: str
) -> None:
    honest = numbered(RECORD, 0).to_dict()
    spoilt = honest | change
    if "attention" in change:
        spoilt["attention"] = honest["attention"] | change["attention"]
    (folder / NAME).write_text("".join(json.dumps(each) + "\n" for each in (honest, spoilt)))
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("evaluation.json", "{", "evaluation.json is no JSON"),
        ("evaluation.json", "[]", "evaluation.json holds no tables"),
        ("labels.csv", "file,label\n", "labels.csv has not the columns pixels_sha256, index, label"),
        ("labels.csv", "", "labels.csv has not the columns"),
        ("labels.csv", "pixels_sha256,index,label\na,b,c\n", "labels.csv has not the columns"),
        (MEASURES, '{"bundle":""}\n{"image":""}\n', "line 2 is no line of fvit-evaluate"),
    ],
)
def test_what_lies_beside_the_records_and_is_spoilt_is_told(
    folder: Path, name: str, text: str, said: str
) -> None:
    write_records(folder, [RECORD])
    (folder / name).write_text(text)
    assert said in refusal(folder)


def test_thumbnails_that_are_none_are_left_out(folder: Path) -> None:
    write_records(folder, [RECORD])
    left, digest = Left.of(folder), RECORD.pixels_sha256
    assert (left.strip(digest), left.plain_explanation(digest, grid=(2, 2))) == (None, None)
    (folder / FOLDER).mkdir()
    for kind in ("webp", "png"):
        (folder / FOLDER / f"{digest}.{kind}").write_bytes(b"<script>")
    assert (left.strip(digest), left.plain_explanation(digest, grid=(2, 2))) == (None, None)
    Image.new("L", (3, 2), 7).save(folder / FOLDER / f"{digest}.png")
    assert left.plain_explanation(digest, grid=(2, 2)) is None
    assert left.plain_explanation(digest, grid=(2, 3)) == [7] * 6
