"""kill -9 of workers, nodes and the command itself at any time: nothing is lost, nothing is done twice."""

import os
import random
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from fvit.runtime.journal import LOCK, NAME
from tests.cluster.conftest import IMAGES, Nodes, locally, records
from tests.commands import WAITS, Ended, ended, started
from tests.fuzz.trying import LONG

TERMS = ("--n", "4000", "--alpha", "0.1", "--seed", "3", "--no-pictures")
KINDS = ("worker", "node", "command")
RUNS = 7 if LONG else 1
"""Of each kind: 21 where much is tried."""


@pytest.fixture(scope="module")
def asked(stand_in: Path, images: Path) -> tuple[object, ...]:
    return (stand_in, images, *TERMS)


@pytest.fixture(scope="module")
def wanted(asked: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return locally(*asked, out=tmp_path_factory.mktemp("wanted"))


def pause(process: "subprocess.Popen[str]", seconds: float) -> None:
    """Wait for so many seconds, or until the process has ended."""
    if process.poll() is None:
        opened = os.pidfd_open(process.pid)
        select.select([opened], [], [], seconds)
        os.close(opened)


def until_records(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    """Wait until so many are written, or the process has ended."""
    end = time.monotonic() + WAITS
    while process.poll() is None and lines(out) < count:
        assert time.monotonic() < end, f"hangs at {lines(out)} records"
        pause(process, 0.05)


def lines(out: Path) -> int:
    file = out / NAME
    return file.read_bytes().count(b"\n") if file.exists() else 0


def finished(process: "subprocess.Popen[str]") -> Ended:
    pause(process, WAITS)
    assert process.poll() is not None, "hangs"
    return ended(process)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attempt", range(RUNS))
def test_after_any_death_there_is_one_record_for_each_image_as_if_there_had_been_none(
    asked: tuple[object, ...],
    wanted: list[dict[str, Any]],
    nodes: Nodes,
    tmp_path: Path,
    kind: str,
    attempt: int,
) -> None:
    chance = random.Random(f"{kind} {attempt}")
    out = tmp_path / "out"

    def start() -> "subprocess.Popen[str]":
        return started("certify", *asked, "--out", out, "--ray", nodes.address, "--cores", "1")

    process, killed = start(), 0
    for count in sorted(chance.sample(range(IMAGES), 2)):
        until_records(process, out, count)
        if process.poll() is not None:
            break
        pause(process, chance.uniform(0, 0.3))
        if kind == "worker" and (alive := nodes.workers):
            os.kill(chance.choice(alive), signal.SIGKILL)
            killed += 1
        elif kind == "node":
            nodes.replace_one()
            killed += 1
        elif kind == "command":
            process.kill()
            killed += 1
            assert finished(process).status in (0, -signal.SIGKILL)
            process = start()
    done = finished(process)
    if kind == "node" and done.status:  # it was the one that the command had joined
        done = finished(start())
    assert done.status == 0, done.stderr
    assert killed
    assert records(out) == wanted
    assert not (out / LOCK).exists()


def test_an_interruption_ends_a_cluster_of_the_commands_own_and_keeps_what_is_done(
    stand_in: Path, images: Path, tmp_path: Path
) -> None:
    asked = (stand_in, images, "--n", "40000", "--alpha", "0.1", "--no-pictures", "--out", tmp_path)
    process = started("certify", *asked, "--cores", "1", "--ray", "local")
    until_records(process, tmp_path, 1)
    process.send_signal(signal.SIGINT)
    done = finished(process)
    assert done.status == 130
    assert done.stderr.endswith("interrupted\n")
    kept = records(tmp_path)
    assert 1 <= len(kept) < IMAGES
    assert "records are in" in done.stdout
    assert not (tmp_path / LOCK).exists()
