"""Whatever lies in an output folder: it is continued, or refused in one line and left alone."""

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fvit.certificates.record import Certificate
from fvit.errors import FvitError
from fvit.runtime.journal import NAME, Journal
from tests.fuzz.trying import promptly, spoiled, tried
from tests.runtime.test_journal import BUNDLE, RECORD, TERMS, numbered, picture, record_of

OF_ALL = record_of(picture(1), dataclasses.replace(TERMS, k=(2, 1), radius=0.1))


def line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


LINES = st.one_of(
    spoiled(OF_ALL).map(lambda text: text.encode("utf-8", "surrogatepass") + b"\n"),
    spoiled(RECORD).map(lambda text: text.encode("utf-8", "surrogatepass") + b"\n"),
    st.integers(1, 4).map(lambda number: line(numbered(number))),
    st.binary(max_size=60),
    st.tuples(st.integers(0, 2000), st.binary(max_size=3), st.integers(0, 2000)).map(
        lambda cut: line(RECORD)[: cut[0]] + cut[1] + line(RECORD)[cut[2] :]
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journals")


@tried(20)
@given(data=st.lists(LINES, max_size=4).map(b"".join))
@example(data=line({name: value for name, value in RECORD.items() if name != "class"} | {"class_": {}}))
def test_a_journal_is_continued_or_refused_and_left_alone(data: bytes, folder: Path) -> None:
    file = folder / NAME
    file.write_bytes(data)
    with ExitStack() as opened, promptly():
        try:
            journal = opened.enter_context(Journal(folder))
            record = journal.find(picture(1), TERMS, bundle=BUNDLE)
        except FvitError as error:
            assert len(str(error).splitlines()) == 1
            assert file.read_bytes() == data
            return
        assert record is None or Certificate.model_validate(record).pixels_sha256 == f"{1:064x}"
        assert file.read_bytes() == data
        journal.append(numbered(5))
    whole, last = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
    kept = file.read_bytes()
    assert kept in (whole + line(numbered(5)), whole + last + b"\n" + line(numbered(5)))
    assert kept.startswith(data) or b'{"image": "'.startswith(last[:11])
