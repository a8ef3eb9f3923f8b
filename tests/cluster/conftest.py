"""A Ray cluster of two nodes on this machine, as real as one gets here."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.standin import pictures, write_stand_in
from fvit.cluster import crew
from fvit.runtime.journal import NAME
from tests.commands import here

IMAGES = 8

# By Ray's own rule workers come after whatever else runs: other tests.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that has other work, real workers need long to start, and nobody is to be told."""
    if "nodes" in request.fixturenames:
        monkeypatch.setattr(crew, "PATIENCE", 600)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of next to no cost."""
    return write_stand_in(tmp_path_factory.mktemp("stand-in") / "bundle")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(pictures(IMAGES, seed=0)):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


class Nodes:
    """Raylets of one cluster, with a core each; the first stays."""

    def __init__(self, cache: Path) -> None:
        from ray.cluster_utils import Cluster

        self.cache = cache
        os.environ["XDG_CACHE_HOME"] = str(cache)  # which its workers inherit
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self._added = self._cluster.add_node(num_cpus=1)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def workers(self) -> list[int]:
        """Processes of fvit's workers that are alive."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cmdline").read_bytes().startswith(b"ray::Worker"):
                    parent = re.findall(r"PPid:\t(\d+)", (process / "status").read_text())[0]
                    raylet = Path("/proc", parent, "cmdline").read_text()
                    found += [int(process.name)] if self.address in raylet else []
            except OSError:  # it has ended meanwhile
                continue
        return found

    def replace_one(self) -> None:
        """kill -9 of a node's raylet, which what it has started does not outlive; another node comes."""
        self._cluster.remove_node(self._added, allow_graceful=False)
        self._added = self._cluster.add_node(num_cpus=1)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    before = dict(os.environ)
    cluster = Nodes(tmp_path_factory.mktemp("cache"))
    yield cluster
    cluster.close()
    os.environ.clear()
    os.environ.update(before)


def records(out: Path) -> list[dict[str, Any]]:
    """By image, less what a record may differ in from the same one made elsewhere."""
    found = [json.loads(line) for line in (out / NAME).read_bytes().splitlines()]
    assert len({record["pixels_sha256"] for record in found}) == len(found)
    kept = [
        {name: value for name, value in record.items() if name not in ("seconds", "engine")}
        for record in found
    ]
    return sorted(kept, key=lambda record: str(record["image"]))


def locally(*arguments: object, out: Path) -> list[dict[str, Any]]:
    """The records of a run without Ray."""
    done = here("certify", *arguments, "--out", out)
    assert done.status == 0, done.stderr
    return records(out)
