"""fvit-certify --ray against the same command without it."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from fvit.cluster import driver, worker
from fvit.engines.base import PLANS
from fvit.runtime.journal import NAME
from tests.cluster.conftest import IMAGES, Nodes, locally, records
from tests.commands import here

TERMS = ("--n", "200", "--alpha", "0.1", "--seed", "3")
WORKERS = ("--cores", "1")


@pytest.mark.parametrize(
    "terms",
    [
        (*TERMS, "--top-k", "3", "--top-k", "5", "--radius", "0.02"),
        (*TERMS, "--aggregate", "mean"),
    ],
)
def test_records_are_those_of_a_run_without_a_cluster(
    stand_in: Path, images: Path, nodes: Nodes, tmp_path: Path, terms: tuple[str, ...]
) -> None:
    asked = (stand_in, images, *terms, "--no-pictures")
    done = here("certify", *asked, "--out", tmp_path / "ray", "--ray", nodes.address, *WORKERS)
    assert (done.status, done.stderr) == (0, "")
    assert records(tmp_path / "ray") == locally(*asked, out=tmp_path / "here")
    assert len(records(tmp_path / "ray")) == IMAGES


def test_pictures_are_drawn_by_workers_and_kept_here(
    stand_in: Path, images: Path, nodes: Nodes, tmp_path: Path
) -> None:
    asked = (stand_in, images / "00.png", *TERMS, "--save-input")
    done = here("certify", *asked, "--out", tmp_path / "ray", "--ray", nodes.address, *WORKERS)
    assert (done.status, done.stderr) == (0, "")
    assert "records and pictures are in" in done.stdout
    locally(*asked, out=tmp_path / "here")
    made = [
        {str(file.relative_to(tmp_path / place)) for file in (tmp_path / place).rglob("*") if file.is_file()}
        for place in ("here", "ray")
    ]
    assert made[0] == made[1] and len(made[0]) == 5
    for name in made[0] - {NAME}:
        one, other = (Image.open(tmp_path / place / name) for place in ("ray", "here"))
        assert one.tobytes() == other.tobytes()


def test_what_is_done_is_done_and_needs_no_cluster(
    stand_in: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (stand_in, images, *TERMS, "--no-pictures")
    before = locally(*asked, out=tmp_path / "out")
    monkeypatch.setattr(driver, "connected", None)
    done = here("certify", *asked, "--out", tmp_path / "out", "--ray", *WORKERS)
    assert done.status == 0
    assert f"{IMAGES} of them were done before" in done.stdout
    assert records(tmp_path / "out") == before


def test_each_image_has_a_seed_of_its_own(stand_in: Path, images: Path, nodes: Nodes, tmp_path: Path) -> None:
    asked = (stand_in, images, "--n", "40", "--alpha", "0.1", "--no-pictures", "--out", tmp_path)
    assert here("certify", *asked, "--ray", nodes.address, *WORKERS).status == 0
    assert len({record["seed"] for record in records(tmp_path)}) == IMAGES


def test_a_bundle_that_a_node_does_not_have_travels_there_once(
    stand_in: Path, images: Path, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hashes are verified there: what was spoiled on the node meanwhile travels again."""
    elsewhere = lambda folder, *others, **named: worker.Setting(tmp_path / "nowhere", *others, **named)  # noqa: E731
    monkeypatch.setattr(driver, "Setting", elsewhere)
    asked = (stand_in, images, *TERMS, "--no-pictures")
    kept = Path(nodes.cache) / "fvit" / "bundles"
    wanted = locally(*asked, out=tmp_path / "here")
    for time in ("first", "spoiled"):
        done = here("certify", *asked, "--out", tmp_path / time, "--ray", nodes.address, *WORKERS)
        assert (done.status, done.stderr) == (0, "")
        assert records(tmp_path / time) == wanted
        (bundle,) = (folder for folder in kept.iterdir() if folder.is_dir())
        for file in stand_in.iterdir():
            assert (bundle / file.name).read_bytes() == file.read_bytes()
        (bundle / "classifier.onnx").write_bytes(b"spoiled")


def test_a_plan_that_was_built_since_travels_too(
    stand_in: Path, images: Path, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = lambda folder, *others, **named: worker.Setting(tmp_path / "nowhere", *others, **named)  # noqa: E731
    monkeypatch.setattr(driver, "Setting", elsewhere)
    bundle = shutil.copytree(stand_in, tmp_path / "bundle")
    plans = bundle / PLANS
    plans.mkdir()
    for name, content in (("one.plan", b"built"), ("another.plan", b"built"), ("one.plan", b"built again")):
        (plans / name).write_bytes(content)
        done = here("certify", bundle, images, *TERMS, "--ray", nodes.address, *WORKERS)
        assert done.status == 0
        there = Path(nodes.cache, "fvit", "bundles").glob(f"*/{PLANS}/*")
        assert (name, content) in {(file.name, file.read_bytes()) for file in there}


def test_a_cluster_that_was_there_is_named(
    stand_in: Path, images: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    done = here("certify", stand_in, images, *TERMS, "--ray", *WORKERS)
    assert done.stderr.startswith(f"on the Ray cluster at {nodes.address}, which was there")


def test_what_cannot_be_asked_is_refused_before_any_cluster_is(
    stand_in: Path, images: Path, tmp_path: Path
) -> None:
    for options, said in (
        (("--ray", "--sigma", "1000"), "choose σ between"),
        (("--ray", "--device", "cuda:1"), "device 'cuda:1': on a cluster use"),
        (("--ray", "--device", "gpu"), "device 'gpu': on a cluster use"),
        (("--ray=nonsense",), "--ray nonsense: no address of a cluster"),
        (("--ray", "ray://head:10001"), "no address of a cluster"),
        (("--cores", "1"), "give --ray"),
    ):
        assert said in here("certify", stand_in, images, *options).refusal
    assert "is no bundle" in here("certify", tmp_path, images, "--ray").refusal


def test_where_no_cluster_answers_that_is_one_line(
    stand_in: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = here("certify", stand_in, images, *TERMS, "--ray", "127.0.0.1:1")
    assert "no Ray cluster answers at 127.0.0.1:1 (Connection refused)" in done.refusal
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "no Ray cluster answers (Connection refused)" in here("certify", stand_in, images, "--ray").refusal


def test_a_missing_ray_is_named_with_the_command_that_installs_it(
    stand_in: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "run  pip install 'fvit[ray]'" in here("certify", stand_in, images, "--ray").refusal


def test_what_a_worker_cannot_load_is_said_in_its_own_words(
    stand_in: Path, images: Path, nodes: Nodes
) -> None:
    done = here("certify", stand_in, images, *TERMS, "--ray", nodes.address, *WORKERS, "--batch", str(10**9))
    assert done.status == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: batch = 1000000000: so many copies on each of 1 core"
    )


def test_nodes_of_another_version_are_refused(
    stand_in: Path, images: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for change, said in (("version", "0.0.1"), ("code", "c0de")):
        with monkeypatch.context() as patched:
            patched.setattr(driver, change, lambda *_, said=said: said)
            done = here("certify", stand_in, images, *TERMS, "--ray", nodes.address, *WORKERS)
        assert done.status == 1
        assert re.search(rf"the command is .*{said}.*: install one", done.stderr.splitlines()[-1])
