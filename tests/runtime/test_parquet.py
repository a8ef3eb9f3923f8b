"""certificates.parquet against the records that it is made of."""

import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fvit.certificates.record import Certificate
from fvit.errors import FvitError
from fvit.runtime import parquet
from fvit.runtime.journal import NAME, Journal
from fvit.runtime.parquet import write_parquet
from tests.certificates.test_record import KINDS
from tests.fuzz.test_records import record_of

RECORDS = [record_of(**kind) | {"pixels_sha256": f"{number:064x}"} for number, kind in enumerate(KINDS)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    file = tmp_path / "certificates.parquet"
    write_parquet(map(Certificate.model_validate, RECORDS), file)
    return file


def test_every_field_of_every_record_is_in_its_column_and_nothing_else_is(written: Path) -> None:
    rows = pyarrow.parquet.read_table(written).to_pylist()
    assert len(rows) == len(RECORDS) > 3
    for row, record in zip(rows, RECORDS, strict=True):
        there = {name: value for name, value in row.items() if value is not None}
        assert same(there, flat(record))


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """As docs/record.md has its fields, with _ for the dots."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        if name in ("class", "attention", "faithful", "decision", "engine"):
            found |= {f"{name}_{inner}": each for inner, each in value.items()}
        else:
            found[name] = value
    return found


def same(one: Any, other: Any) -> bool:
    """Up to what Arrow has for JSON's objects: pairs for a map, and null for what one record lacks."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() >= other.keys() and all(
            same(value, other.get(name)) for name, value in one.items()
        )  # fmt: skip
    if isinstance(other, dict):
        return dict(one) == other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_columns_have_the_types_of_their_fields(written: Path) -> None:
    types = {field.name: field.type for field in pyarrow.parquet.read_schema(written)}
    counts = types.pop("class_counts")
    assert (counts.key_type, counts.item_type) == (pyarrow.string(), pyarrow.int64())
    assert {name: str(kind) for name, kind in types.items() if name in WANTED} == WANTED
    assert not any(pyarrow.types.is_null(kind) for kind in types.values())


WANTED = {
    "image": "string", "seed": "uint64", "copies": "int64", "sigma": "double", "size": "list<element: int64>",
    "class_label": "string", "class_radius_l2": "double",
    "class_abstained": "bool", "attention_votes": "list<element: int64>",
    "attention_radius_by_beta": "list<element: list<element: double>>", "decision_answer": "string",
    "bound": "string", "seconds": "double",
}  # fmt: skip


def test_the_largest_seed_and_a_name_that_is_no_utf_8_are_kept(tmp_path: Path) -> None:
    record = RECORDS[0] | {"seed": 2**64 - 1, "image": "caf\udce9.png"}
    write_parquet([Certificate.model_validate(record)], tmp_path / "p")
    (row,) = pyarrow.parquet.read_table(tmp_path / "p").to_pylist()
    assert row["seed"] == 2**64 - 1 and row["image"] == "caf\\udce9.png"


def test_records_are_written_a_group_at_a_time_in_the_order_of_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP", 2)
    with Journal(tmp_path) as journal:
        for record in reversed(RECORDS):
            journal.append(record)
        write_parquet(journal, tmp_path / "p")
    opened = pyarrow.parquet.ParquetFile(tmp_path / "p")
    assert opened.num_row_groups == math.ceil(len(RECORDS) / 2)
    assert opened.read()["pixels_sha256"].to_pylist() == [each["pixels_sha256"] for each in RECORDS[::-1]]


def test_a_file_that_cannot_be_finished_is_not_there_and_one_that_was_is_left(
    written: Path, tmp_path: Path
) -> None:
    before = written.read_bytes()
    with Journal(tmp_path / "out") as journal:
        journal.append(RECORDS[0])
        (tmp_path / "out" / NAME).write_bytes(
            (tmp_path / "out" / NAME).read_bytes().replace(b'"n": ', b'"m": ')
        )
        with pytest.raises(FvitError, match="line 1 is no record"):
            write_parquet(journal, written)
    assert written.read_bytes() == before
    with pytest.raises(FvitError, match="cannot write .*No such file"):
        write_parquet([], tmp_path / "absent" / "p")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [written.name, "out"]
