import gc
import io
import json
import os
import random
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import fvit
from fvit.certificates.record import Certificate
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms
from fvit.runtime import verifying
from fvit.runtime.images import Picture, read_image
from fvit.runtime.verifying import lines_of
from tests.commands import Ended, here

Record = dict[str, Any]


@pytest.fixture(scope="module")
def made(vit: fvit.FaithfulViT, samples: list[Path]) -> list[Record]:
    """Records of the demo bundle, of every kind."""
    asked: list[dict[str, Any]] = [
        {}, {"k": (5, 10)}, {"radius": 0.01}, {"aggregate": "mean", "n": 70},
    ]  # fmt: skip
    return [
        vit.certify(sample, **({"n": 40, "alpha": 0.1, "seed": i} | terms)).to_dict()
        for i, (sample, terms) in enumerate(zip(samples, asked, strict=False))
    ]


@pytest.fixture
def verify(tmp_path: Path, vit: fvit.FaithfulViT, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Write these lines to a file and run fvit-verify on it, with the demo bundle loaded once for all."""
    monkeypatch.setattr(verifying, "load", lambda *_, **__: nullcontext(vit))

    def run(lines: list[Record | bytes], *options: object) -> Ended:
        file = tmp_path / "certificates.jsonl"
        file.write_bytes(
            b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
        )
        return here("verify", file, *options)

    return run


@pytest.fixture
def again(vit: fvit.FaithfulViT, samples: list[Path]) -> list[object]:
    """The options that draw the copies again."""
    return ["--bundle", vit.bundle.folder, *(part for sample in samples for part in ("--images", sample))]


def rows(done: Ended) -> list[str]:
    """What was said of each record; then comes a summary."""
    return [row.partition(": ")[2] for row in done.stdout.splitlines()[:-1]]


def test_what_follows_is_said_to_follow(
    verify: Callable[..., Ended], made: list[Record], again: list[object]
) -> None:
    done = verify(made)
    assert (done.status, done.stderr) == (0, "")
    assert rows(done) == ["follows"] * 4
    assert all(record["image"] in row for record, row in zip(made, done.stdout.splitlines(), strict=False))
    assert done.stdout.endswith("4 of 4 records: every claim follows from its counts\n")
    done = verify(made, *again)
    assert done.status == 0
    assert rows(done) == ["follows"] * 4
    assert done.stdout.endswith("every claim holds on this engine\n")


def test_each_bad_line_is_a_row_of_its_own(verify: Callable[..., Ended], made: list[Record]) -> None:
    forged = made[0] | {"class": made[0]["class"] | {"radius_l2": 3.0}}
    line = json.dumps(made[0]).encode()
    done = verify(
        [made[0], forged, b"{}\n", b"\xff\xfe\n", b"[" * 9999 + b"\n", {"n0": 100}, made[1], line[:-40]]
    )
    assert done.status == 1
    said = rows(done)
    assert [said[0], said[6]] == ["follows", "follows"]
    assert "class.radius_l2 is 3.0, but" in said[1]
    assert "Field required" in said[2]
    assert "is no JSON" in said[3] and "is no JSON" in said[4]
    assert "not checkable" in said[5]
    assert said[7] == "is no JSON: broken, or cut off"
    assert done.stdout.endswith("\n2 of 8 records: every claim follows from its counts\n")


def test_what_copies_drawn_again_do_not_support_is_said(
    verify: Callable[..., Ended], made: list[Record], again: list[object], vit: fvit.FaithfulViT
) -> None:
    other_seed = vit.certify(made[0]["image"], n=40, alpha=0.1, seed=77).to_dict() | {"seed": 0}
    better = made_of(vit, {}) | {"pixels_sha256": made[0]["pixels_sha256"]}
    elsewhere = made[0] | {"bundle": "0" * 64}
    absent = made[0] | {"pixels_sha256": "0" * 64}
    lines = [made[0], better, other_seed, elsewhere, absent]
    assert rows(verify(lines)) == ["follows"] * 5  # counts alone cannot tell
    done = verify(lines, *again)
    said = rows(done)
    assert done.status == 1
    assert said[0] == "follows"
    assert "are recorded, the copies give" in said[1]
    assert "of the 64 tokens of the map at k = 10 are recorded to keep their sides further" in said[1]
    assert said[3] == f"bundle 000000000000… made it, not this one ({vit.bundle.digest[:12]}…)"
    assert said[4] == "its image is not among those given"


def test_every_claim_is_compared_with_the_copies_drawn_again(
    verify: Callable[..., Ended], samples: list[Path], again: list[object], vit: fvit.FaithfulViT
) -> None:
    """Votes taken from the strongest rivals and given to those behind them."""
    picture = vit.read(samples[0])
    terms = vit.terms(n=400, alpha=0.1, seed=1, beta=0.3)
    tally = vit.tallied(picture, terms, copies=400)
    honest, votes = vit.recount(picture, terms, copies=400), tally.votes[0]
    ranked = np.argsort(-votes, kind="stable")
    moved = votes[ranked[10:20]] // 2
    votes[ranked[10:20]] -= moved
    votes[ranked[-40:]] += np.bincount(np.arange(moved.sum()) % 40, minlength=40)
    forged = Certificate.of(
        tally, terms, image=picture.name, sha256=picture.sha256, pixels_sha256=picture.pixels_sha256,
        labels=vit.bundle.manifest.labels, grid=honest.attention.grid, engine=vit.engine,
        bundle=vit.bundle.digest, seconds=1.0,
    )  # fmt: skip
    renamed = honest.to_dict()
    renamed["class"]["label"] = "cat"
    turned = honest.to_dict()
    turned["attention"]["grid"] = [4, 16]
    lines = [honest.to_dict(), forged.to_dict(), renamed, turned]
    assert rows(verify(lines)) == ["follows"] * 4
    said = rows(verify(lines, *again))
    assert said[0] == "follows"
    assert "of the top 10 tokens are recorded to stay further than the copies give here" in said[1]
    assert "of radius_by_beta at k = 10 are larger than the copies give here" in said[1]
    assert "in this bundle, not 'cat'" in said[2]
    assert said[3] == "this bundle's tokens lie on a grid of 8×8"


def test_a_field_that_is_there_twice_makes_no_record(
    verify: Callable[..., Ended], made: list[Record]
) -> None:
    """Whoever reads the first of two would read another claim than the one that follows."""
    line = json.dumps(made[0])
    twice = line.replace('"class": {', '"class": {"radius_l2": 3.0, ', 1)
    (said, summary) = verify([twice.encode() + b"\n", made[0]]).stdout.splitlines()[::2]
    assert said == "line 1: has a field twice"
    assert summary.startswith("1 of 2 records")


def made_of(vit: fvit.FaithfulViT, terms: dict[str, Any], *, tokens: int = 64, classes: int = 10) -> Record:
    """A record that follows, of copies that nobody drew."""
    asked: dict[str, Any] = {
        "sigma": 0.25, "n": 40, "alpha": 0.1, "k": (10,), "beta": 0.8, "aggregate": "vote", "seed": 1,
        "size": vit.pipeline.image_size,
    }  # fmt: skip
    of = Terms(**(asked | terms))
    tally = Tally(classes, tokens, of.k)
    attribution = np.exp(-np.arange(tokens, dtype=np.float32))
    tally.add(np.eye(classes, dtype=np.float32)[-3:-2], (attribution / attribution.sum())[None])
    tally.copies *= of.n
    for counted in (tally.counts, tally.votes, tally.sums):
        counted *= of.n
    made = Certificate.of(
        tally, of, image="forged.png", sha256="0" * 64, pixels_sha256="0" * 64,
        labels=tuple(map(str, range(classes))), grid=(tokens // 8, 8), engine=vit.engine,
        bundle=vit.bundle.digest, seconds=1.0,
    )  # fmt: skip
    return made.to_dict()


def test_records_that_this_bundle_cannot_have_made_are_rows_too(
    verify: Callable[..., Ended], made: list[Record], again: list[object], vit: fvit.FaithfulViT
) -> None:
    forged = [
        made_of(vit, {"sigma": 100.0}),
        made_of(vit, {"size": (32, 128)}),
        made_of(vit, {}, tokens=256),
        made_of(vit, {"k": (100,)}, tokens=256),
        made_of(vit, {}, classes=13),
    ]
    lines = [record | {"pixels_sha256": made[0]["pixels_sha256"]} for record in forged]
    assert rows(verify(lines)) == ["follows"] * 5
    said = rows(verify([*lines, made[0]], *again))
    assert "cannot be drawn here: σ = 100" in said[0]
    assert said[1] == "size is not that of this bundle's copies"
    assert said[2] == said[3] == "this bundle's tokens lie on a grid of 8×8"
    assert said[4] == "this bundle has 10 classes, and others are counted"
    assert said[5] == "follows"


def test_a_record_of_more_copies_than_are_allowed_is_a_row_and_costs_none(
    verify: Callable[..., Ended],
    made: list[Record],
    again: list[object],
    vit: fvit.FaithfulViT,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rows(verify(made[:1], *again, "--max-copies", 40)) == ["follows"]
    forged = made_of(vit, {"n": 10**9}) | {"pixels_sha256": made[0]["pixels_sha256"]}
    assert rows(verify([forged])) == ["follows"]
    monkeypatch.setattr(fvit.FaithfulViT, "recount", lambda *_, **__: pytest.fail("copies are drawn"))
    for record, options, said in (
        (made[0], ("--max-copies", 39), "40 copies, more than --max-copies 39"),
        (forged, (), "1,000,000,000 copies, more than --max-copies 1,000,000"),
    ):
        done = verify([record], *again, *options)
        assert done.status == 1
        assert rows(done) == [f"not drawn again: {said}"]


def test_on_a_terminal_the_number_of_copies_is_said_before_they_are_drawn(
    verify: Callable[..., Ended], made: list[Record], again: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, recount = io.StringIO(), fvit.FaithfulViT.recount
    before: list[str] = []

    def heard(self: fvit.FaithfulViT, *asked: Any, **named: Any) -> Certificate:
        before.append(shown.getvalue())
        return recount(self, *asked, **named)

    monkeypatch.setattr(fvit.FaithfulViT, "recount", heard)
    terminal = Console(file=shown, force_terminal=True, width=99, _environ={})
    monkeypatch.setattr(verifying, "problems", terminal)
    assert rows(verify(made[:2], *again)) == ["follows"] * 2
    assert "line 1, drawn again: 0 of 40 copies" in before[0]
    assert "line 2, drawn again: 0 of 40 copies" in before[1]


def test_pixels_are_read_when_their_record_comes_and_not_kept_before(
    verify: Callable[..., Ended],
    made: list[Record],
    again: list[object],
    samples: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pictures: list[weakref.ref[Picture]] = []
    kept: list[int] = []

    def noted(file: str, **named: Any) -> Picture:
        picture = read_image(file, **named)
        pictures.append(weakref.ref(picture))
        return picture

    def lines(file: Path) -> Iterator[tuple[int, Any]]:
        gc.collect()
        kept.append(sum(picture() is not None for picture in pictures))
        yield from lines_of(file)

    monkeypatch.setattr(verifying, "read_image", noted)
    monkeypatch.setattr(verifying, "lines_of", lines)
    assert rows(verify(made[:1], *again)) == ["follows"]
    assert (kept, len(pictures)) == ([0], len(samples) + 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file, other: shutil.copy(other, file), "has changed since it was read first"),
        (lambda file, other: file.unlink(), "cannot be read: No such file or directory"),
    ],
)
def test_an_image_that_changes_meanwhile_is_a_row(
    verify: Callable[..., Ended],
    made: list[Record],
    samples: list[Path],
    vit: fvit.FaithfulViT,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, Path], Any],
    said: str,
) -> None:
    file = Path(shutil.copy(made[0]["image"], tmp_path / "image.png"))

    def lines(records: Path) -> Iterator[tuple[int, Any]]:
        change(file, samples[1])
        yield from lines_of(records)

    monkeypatch.setattr(verifying, "lines_of", lines)
    done = verify(made[:1], "--bundle", vit.bundle.folder, "--images", file)
    assert done.status == 1
    assert rows(done) == [f"its copies cannot be drawn here: {file} {said}"]


def test_an_image_that_cannot_be_read_costs_its_own_record_alone(
    verify: Callable[..., Ended], made: list[Record], vit: fvit.FaithfulViT, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no image")
    shutil.copy(made[0]["image"], folder)
    done = verify(made[:2], "--bundle", vit.bundle.folder, "--images", folder)
    assert rows(done) == ["follows", "its image is not among those given"]
    assert done.stderr.startswith("error: ") and "broken.png is not an image" in done.stderr


@pytest.mark.parametrize(
    "name", ["two\nlines.png", "[red]a.png", "\u2028.png", "\x1b[2J.png", "\udce9.png", "\ud800"]
)
def test_whatever_an_image_is_called_its_record_is_one_row(
    verify: Callable[..., Ended], made: list[Record], name: str
) -> None:
    done = verify([made[0] | {"image": name}])
    assert done.status == 0
    row, _ = done.stdout.removesuffix("\n").split("\n")
    assert row.isprintable() and row.endswith(": follows")


def test_a_bundle_goes_with_images(verify: Callable[..., Ended], made: list[Record]) -> None:
    for options in (("--bundle", "b"), ("--images", "i")):
        assert "give --bundle and --images" in verify(made, *options).refusal


def test_what_holds_no_record_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "LONGEST", 1 << 16)
    garbage = random.Random(0).randbytes(1 << 17)
    (tmp_path / "empty").touch()
    (tmp_path / "lines").write_bytes(garbage)
    (tmp_path / "line").write_bytes(garbage.replace(b"\n", b"."))
    (tmp_path / "text").write_bytes(b"my notes\n" * 1000)
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    for place, message in (
        ("absent", "No such file"),
        ("empty", "holds no record"),
        ("lines", "is no certificates.jsonl"),
        ("line", "is no certificates.jsonl"),
        ("sparse", "is no certificates.jsonl"),
        ("pipe", "holds no record"),
        ("", "Is a directory"),
        ("/dev/zero", "is a device"),
    ):
        done = here("verify", tmp_path / place)
        assert done.status == 1
        assert message in done.stderr and done.stderr.startswith("error: ")
    assert here("verify", tmp_path / "text").stdout.count("\n") < 100


def test_a_line_that_is_too_long_is_a_row(
    verify: Callable[..., Ended], made: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "LONGEST", 1 << 16)
    done = verify([made[0], b"x" * (1 << 18) + b"\n", made[1]])
    assert done.status == 1
    assert [rows(done)[0], rows(done)[2]] == ["follows", "follows"]
    assert "no record" in rows(done)[1]


def test_a_pipe_that_is_written_to_is_read(made: list[Record]) -> None:
    read, write = os.pipe()
    os.write(write, json.dumps(made[0]).encode())
    os.close(write)
    assert here("verify", f"/dev/fd/{read}").status == 0
    os.close(read)
