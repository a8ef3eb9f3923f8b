"""Whatever a certificates.jsonl says: rows that are true, or one line."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fvit.certificates.bounds import BETS
from fvit.certificates.radii import Aggregate
from fvit.certificates.record import Certificate
from fvit.certificates.tally import UNIT, Tally
from fvit.certificates.terms import Terms
from fvit.certificates.verify import MOST_SIZE, MOST_VOTES, verify
from tests.certificates.conftest import drawn
from tests.certificates.test_record import KINDS
from tests.commands import here
from tests.fuzz.trying import promptly, spoiled, tried

Record = dict[str, Any]


def record_of(*, copies: int = 400, **kind: Any) -> Record:
    asked: Record = {"sigma": 0.25, "alpha": 0.01, "k": 10, "beta": 0.8, "aggregate": "vote", "seed": 0}
    terms = Terms.of(n=400, size=(64, 48), **(asked | kind))
    certificate = Certificate.of(
        drawn(terms, copies=copies, seed=0), terms, image="photo.png", sha256="0" * 64,
        pixels_sha256="1" * 64, labels=[f"class {index}" for index in range(10)], grid=(8, 8),
        engine={"name": "onnxruntime", "device": "cpu", "precision": "fp32"}, bundle="2" * 64, seconds=1.5,
    )  # fmt: skip
    return dict(json.loads(json.dumps(certificate.to_dict())))


HONEST = [record_of(**kind) for kind in KINDS]


def split(record: Record) -> tuple[Record, Record]:
    """What a record rests on, and what it claims by it, by the way to each."""
    rests: Record = {}
    claims: Record = {}
    for name, value in flat(record, ""):
        of_counts = any(part in name for part in (".counts", ".votes", ".sums", "wealth", ".grid"))
        asked = name.rpartition(".")[2] in ("k", "beta", "aggregate", "order") or name == ".decision.radius"
        of_terms = name.removeprefix(".").partition(".")[0] in (
            "image", "sha256", "pixels_sha256", "size", "sigma", "alpha", "seed", "n", "copies", "bound",
            "engine", "bundle", "fvit", "seconds",
        )  # fmt: skip
        (rests if of_counts or asked or of_terms or name == ".class.label" else claims)[name] = value
    return rests, claims


def flat(value: Any, way: str) -> list[tuple[str, Any]]:
    inside = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    return (
        [(way, value)]
        if inside is None
        else [each for key, part in inside for each in flat(part, f"{way}.{key}")]
    )


def changed(record: Record, **attention: Any) -> Record:
    return record | {"attention": record["attention"] | attention}


@pytest.mark.parametrize(
    "record",
    [
        changed(HONEST[0], beta=1e-300),
        changed(HONEST[0], grid=[10**4000, 10**4000]),
        changed(HONEST[0], votes=[0] * 100_000, sums=[0] * 100_000, grid=[100, 1000]),
    ],
)
def test_what_was_found_once_is_a_finding(record: Record) -> None:
    assert verify(record)


@pytest.mark.parametrize("aggregate", ["vote", "mean"])
def test_the_largest_record_that_is_checked_takes_no_longer_than_a_person_waits(aggregate: Aggregate) -> None:
    tokens, k, copies = MOST_VOTES, MOST_SIZE, 20_000
    terms = Terms.of(
        sigma=0.25, n=copies, alpha=0.5, k=k, beta=0.01, aggregate=aggregate, seed=1, size=(64, 64)
    )  # fmt: skip
    tally = Tally(2, tokens, (k,), betting=aggregate == "mean", copies=copies)
    tally.counts[1] = copies
    tally.votes[0] = np.where(np.arange(tokens) < 2 * k, copies // 2, 0)
    tally.votes[0, : 2 * k] += np.arange(2 * k) - np.arange(2 * k)[::-1]  # as many counts as there can be
    shares = np.linspace(2, 0, tokens) / tokens
    tally.sums[:] = np.rint(shares * UNIT) * copies
    if aggregate == "mean":
        tally.wealth[:] = np.floor(np.log1p(BETS[:, None] * shares) * UNIT) * copies
    record = Certificate.of(
        tally, terms, image="", sha256="0" * 64, pixels_sha256="0" * 64, labels="ab", grid=(128, 128),
        engine={"name": "", "device": "", "precision": ""}, bundle="0" * 64, seconds=0.0,
    )  # fmt: skip
    with promptly():
        assert verify(json.loads(json.dumps(record.to_dict()))) == []


@tried(20)
@given(data=st.data())
def test_a_spoiled_record_is_found_or_claims_the_same(data: st.DataObject) -> None:
    honest = data.draw(st.sampled_from(HONEST))
    text = data.draw(spoiled(honest))
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return
    with promptly():
        findings = verify(record)
    assert all(isinstance(each, str) and len(each.splitlines()) == 1 for each in findings)
    if not findings:
        (rests, claims), (rested, claimed) = split(record), split(honest)
        if rests == rested:
            assert claims.keys() == claimed.keys()
            assert all(same(claims[name], claimed[name]) for name in claims)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-5)
    return bool(one == other)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records") / "certificates.jsonl"


LINES = st.sampled_from(HONEST).flatmap(spoiled) | st.text(max_size=40) | st.just('{"n0": 3}')


@tried(20)
@given(
    text=st.lists(LINES, max_size=4).map("\n".join),
    spoils=st.none() | st.tuples(st.integers(0, 3000), st.binary(max_size=3)),
)
@example(text="", spoils=None)
@example(text="\n\n", spoils=None)
@example(text="[" * 100_000, spoils=None)
def test_each_line_of_a_file_is_a_row(text: str, spoils: tuple[int, bytes] | None, file: Path) -> None:
    written = text.encode("utf-8", "surrogatepass")
    if spoils is not None:
        written = written[: spoils[0]] + spoils[1] + written[spoils[0] :]
    file.write_bytes(written)
    with promptly():
        done = here("verify", file)
    if not written:
        assert "is empty" in done.refusal
        return
    *rows, summary = done.stdout.removesuffix("\n").split("\n")
    lines = written.removesuffix(b"\n").split(b"\n")
    assert done.stderr == ""
    assert [row.partition(",")[0].partition(":")[0] for row in rows] == [
        f"line {i + 1}" for i in range(len(lines))
    ]
    assert all(row.isprintable() for row in rows)
    good = sum(row.endswith(": follows") for row in rows)
    assert summary == f"{good} of {len(rows)} records: every claim follows from its counts"
    assert done.status == (0 if good == len(rows) else 1)
