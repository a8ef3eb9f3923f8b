"""What a system does to fvit-certify at any time: what is done is kept, and the next run does the rest."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from PIL import Image

from fvit.runtime import parquet
from fvit.runtime.journal import LOCK, NAME
from fvit.runtime.thumbnails import FOLDER
from tests.commands import obey_modes
from tests.fuzz.disk import Disk, disk_of
from tests.fuzz.trying import LONG
from tests.zygote import Run, Zygote

TERMS = ["--n", "24", "--alpha", "0.3", "--seed", "7"]
IMAGES = 4
RUNS = 100 if LONG else 1
"""Of each of six kinds."""

LARGEST = 100_000
"""Bytes that some file of a run has more than, or is kept from having."""

SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}

# Not ONNX Runtime, which does not survive a fork.
MODULES = ("fvit.runtime.cli", "fvit.runtime.pictures", "matplotlib.backends.backend_agg")


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    started = Zygote("certify", *MODULES, folder=tmp_path_factory.mktemp("streams"), prepare=obey_modes)
    yield started
    started.close()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    folder = tmp_path_factory.mktemp("mounted")
    found = disk_of(partial(Zygote, "certify", *MODULES, folder=folder), folder=folder)
    yield found
    found.zygote.close()


@pytest.fixture(scope="module")
def asked(demo_bundle: Path, samples: list[Path]) -> list[object]:
    return [demo_bundle, *samples[:IMAGES], *TERMS, "--format", "parquet"]


@pytest.fixture(scope="module")
def uninterrupted(zygote: Zygote, asked: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("uninterrupted")
    assert zygote.start(*asked, "--out", out).end() == 0
    return out


@pytest.fixture(scope="module")
def seconds(
    zygote: Zygote, asked: list[object], uninterrupted: Path, tmp_path_factory: pytest.TempPathFactory
) -> float:
    """That a run takes which nothing happens to, and which is not the first."""
    began = time.monotonic()
    assert zygote.start(*asked, "--out", tmp_path_factory.mktemp("again")).end() == 0
    return time.monotonic() - began


def records(out: Path) -> list[Any]:
    """Less the time that they took."""
    found = [json.loads(line) for line in (out / NAME).read_bytes().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in found]


@pytest.mark.parametrize("kind", ["kill", "terminate", "interrupt", "file-size limit", "read-only"])
@pytest.mark.parametrize("attempt", range(RUNS))
def test_a_run_that_is_cut_short_is_made_whole_by_the_next(
    zygote: Zygote, asked: list[object], uninterrupted: Path, seconds: float, tmp_path: Path, kind: str,
    attempt: int,
) -> None:  # fmt: skip
    chance = random.Random(f"{kind} {attempt}")
    out = tmp_path / "out"
    out.mkdir()

    def cut(share: float) -> bool:
        """A run that is to be cut short after this share of its time, or of the size of its files; whether it
        was."""
        before = state_of(out)
        # What it says goes to a file too, which must hold a line.
        largest_file = 1024 + int(share * LARGEST) if kind == "file-size limit" else None
        run = zygote.start(*asked, "--out", out, largest_file=largest_file)
        if kind != "file-size limit":
            run.pause(share * seconds)
        if kind == "read-only":
            out.chmod(0o500)
        elif kind in SIGNALS:
            os.kill(run.process, SIGNALS[kind])
        status = run.end()
        out.chmod(0o700)
        done = is_done(out)
        check_words(run, status, kind, heard=state_of(out) != before and not done)
        return not done

    share = chance.random()
    while not cut(share):
        shutil.rmtree(out)
        out.mkdir()
        share /= 2
    cut(share * chance.random())
    resumed = zygote.start(*asked, "--out", out)
    assert (resumed.end(), resumed.stderr) == (0, "")
    check_whole(out, uninterrupted)


@pytest.mark.parametrize("attempt", range(RUNS))
def test_a_run_on_a_disk_that_gets_full_is_made_whole_by_the_next(
    disk: Disk, asked: list[object], uninterrupted: Path, attempt: int
) -> None:
    chance = random.Random(f"full disk {attempt}")
    place, out = disk.place / str(attempt), disk.seen / str(attempt)
    takes = sum(file.stat().st_size for file in uninterrupted.rglob("*") if file.is_file())
    statuses = []
    for _ in range(2):
        disk.leave(int(chance.uniform(0, 0.8) * takes))
        run = disk.zygote.start(*asked, "--out", place)
        statuses.append(run.end())
        check_words(run, statuses[-1], "full disk", heard=True)
        assert not [*out.rglob(".*"), *out.glob(LOCK)]
    assert statuses[0] == 1
    disk.leave(None)
    resumed = disk.zygote.start(*asked, "--out", place)
    assert (resumed.end(), resumed.stderr) == (0, "")
    check_whole(out, uninterrupted)
    shutil.rmtree(out)  # the next one has the same disk


def check_whole(out: Path, uninterrupted: Path) -> None:
    """All that a run which nothing happened to leaves, and nothing else."""
    assert records(out) == records(uninterrupted)
    pictures = sorted(out.glob("*.png"))
    assert len(pictures) == IMAGES
    for picture in pictures:
        Image.open(picture).load()
    whole = {NAME, FOLDER, parquet.NAME, *(picture.name for picture in pictures)}
    assert len(list((out / FOLDER).iterdir())) == 2 * IMAGES
    assert {entry.name for entry in out.iterdir()} == whole
    assert pyarrow.parquet.read_table(out / parquet.NAME).num_rows == IMAGES


REASONS = {
    "file-size limit": "File too large", "full disk": "No space left on device",
    "read-only": "Permission denied",
}  # fmt: skip


def state_of(out: Path) -> set[tuple[str, int]]:
    return {(entry.name, entry.stat().st_mtime_ns) for entry in out.iterdir()}


def is_done(out: Path) -> bool:
    return (out / parquet.NAME).exists() and len(records(out)) == IMAGES


def check_words(run: Run, status: int, kind: str, *, heard: bool) -> None:
    """Each end of a run is what it says. heard: whether a signal came in the midst of the work, where it is
    answered; before and after that it may end the process at once."""
    said = run.stderr
    assert "Traceback" not in said
    if status == 0:
        assert said == ""
    elif kind == "kill":
        assert status == -signal.SIGKILL
    elif kind in SIGNALS:
        number = SIGNALS[kind]
        unheard = [] if heard else [(-number, "")]
        assert (status, said) in [(128 + number, "interrupted\n"), *unheard]
    else:
        assert status == 1
        assert said.startswith("error: cannot write") and said.endswith(f": {REASONS[kind]}\n")
        assert said.count("\n") == 1


@pytest.mark.parametrize("count", [2, 8])
def test_of_runs_at_once_on_one_folder_each_says_what_is_true(
    zygote: Zygote, asked: list[object], uninterrupted: Path, tmp_path: Path, count: int
) -> None:
    runs = [zygote.start(*asked, "--out", tmp_path) for _ in range(count)]
    statuses = [run.end() for run in runs]
    assert set(statuses) <= {0, 1} and 0 in statuses
    for run, status in zip(runs, statuses, strict=True):
        refused = [
            f"error: {tmp_path} is in use by process {other.process}: wait for it or choose another --out\n"
            for other in runs
            if other is not run
        ]
        assert run.stderr in ([""] if status == 0 else refused)
    assert records(tmp_path) == records(uninterrupted)
    assert not (tmp_path / LOCK).exists()
    assert len(list(tmp_path.iterdir())) == 3 + IMAGES
