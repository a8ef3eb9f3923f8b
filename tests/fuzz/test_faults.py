"""What a system does to fvit-certify at any time: what is done is kept, and the next run does the rest."""

import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from PIL import Image

from fvit.runtime import parquet
from fvit.runtime.journal import LOCK, NAME
from fvit.runtime.thumbnails import FOLDER
from tests.commands import obey_modes
from tests.fuzz.trying import HANGS, LONG

TERMS = ["--n", "24", "--alpha", "0.3", "--seed", "7"]
IMAGES = 4
RUNS = 20 if LONG else 1
"""Of each of five kinds."""


@dataclass
class Run:
    """A run of fvit-certify that was forked off."""

    zygote: "Zygote"
    process: int
    streams: tuple[Path, Path]

    def end(self) -> int:
        """Its exit status, negative for a signal."""
        return self.zygote.ask(wait=self.process)

    @property
    def stderr(self) -> str:
        return self.streams[1].read_text()


class Zygote:
    """Forks off runs; obeys modes of files as everybody but root has to."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=obey_modes,
            cwd=Path(__file__).parents[2], env=os.environ | {"COLUMNS": "200"},
        )  # fmt: skip

    def ask(self, **asked: Any) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], 2 * HANGS)
        assert ready, f"hangs: {asked}"
        return int(self._process.stdout.readline())

    def start(self, *arguments: object, largest_file: int | None = None) -> Run:
        self._count += 1
        streams = (self._folder / f"{self._count}.out", self._folder / f"{self._count}.err")
        out, err = map(str, streams)
        process = self.ask(arguments=[*map(str, arguments)], out=out, err=err, largest_file=largest_file)
        return Run(self, process, streams)

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    started = Zygote(tmp_path_factory.mktemp("streams"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def asked(demo_bundle: Path, samples: list[Path]) -> list[object]:
    return [demo_bundle, *samples[:IMAGES], *TERMS, "--format", "parquet"]


@pytest.fixture(scope="module")
def uninterrupted(zygote: Zygote, asked: list[object], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The records of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("uninterrupted")
    assert zygote.start(*asked, "--out", out).end() == 0
    return records(out)


def records(out: Path) -> list[Any]:
    """Less the time that they took."""
    found = [json.loads(line) for line in (out / NAME).read_bytes().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in found]


def pause(moment: float, run: Run) -> None:
    """Wait for so many seconds, or until the run has ended."""
    opened = os.pidfd_open(run.process)
    select.select([opened], [], [], moment)
    os.close(opened)


@pytest.mark.parametrize("kind", ["kill", "terminate", "interrupt", "full disk", "read-only"])
@pytest.mark.parametrize("attempt", range(RUNS))
def test_a_run_that_is_cut_short_is_made_whole_by_the_next(
    zygote: Zygote, asked: list[object], uninterrupted: list[Any], tmp_path: Path, kind: str, attempt: int
) -> None:
    chance = random.Random(f"{kind} {attempt}")
    out = tmp_path / "out"
    out.mkdir()
    for moment in (chance.uniform(0, 4), chance.uniform(0, 2)):  # cut short twice
        # What it says goes to a file too, which must hold a line.
        largest_file = int(2 ** chance.uniform(10, 18)) if kind == "full disk" else None
        run = zygote.start(*asked, "--out", out, largest_file=largest_file)
        if kind != "full disk":
            pause(moment, run)
        if kind == "read-only":
            out.chmod(0o500)
        elif kind != "full disk":
            number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}[kind]
            os.kill(run.process, number)
        status = run.end()
        out.chmod(0o700)
        check_words(run, status, kind)
    resumed = zygote.start(*asked, "--out", out)
    assert resumed.end() == 0, resumed.stderr
    assert resumed.stderr == ""
    assert records(out) == uninterrupted
    pictures = sorted(out.glob("*.png"))
    assert len(pictures) == IMAGES
    for picture in pictures:
        Image.open(picture).load()
    whole = {NAME, FOLDER, parquet.NAME, *(picture.name for picture in pictures)}
    assert len(list((out / FOLDER).iterdir())) == 2 * IMAGES
    assert {entry.name for entry in out.iterdir()} == whole
    assert pyarrow.parquet.read_table(out / parquet.NAME).num_rows == IMAGES


def check_words(run: Run, status: int, kind: str) -> None:
    """Each end of a run is what it says."""
    said = run.stderr
    assert "Traceback" not in said
    if status == 0:
        assert said == ""
    elif kind == "kill":
        assert status == -signal.SIGKILL
    elif kind == "interrupt":
        assert (status, said) in ((130, "interrupted\n"), (-2, ""))
    elif kind == "terminate":
        assert (status, said) in ((143, "interrupted\n"), (-15, ""))
    else:
        reason = "File too large" if kind == "full disk" else "Permission denied"
        assert status == 1
        assert said.startswith("error: cannot write") and said.endswith(f": {reason}\n")
        assert said.count("\n") == 1


@pytest.mark.parametrize("count", [2, 8])
def test_of_runs_at_once_on_one_folder_each_says_what_is_true(
    zygote: Zygote, asked: list[object], uninterrupted: list[Any], tmp_path: Path, count: int
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
    assert records(tmp_path) == uninterrupted
    assert not (tmp_path / LOCK).exists()
    assert len(list(tmp_path.iterdir())) == 3 + IMAGES
