"""fvit-evaluate on the embedded model and its data, which has masks."""

import json
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fvit
from fvit.demo.data import compositions
from fvit.evaluation import adversarial, cli
from fvit.evaluation.evaluate import NAME as TABLES
from fvit.evaluation.keeping import NAME as MEASURES
from fvit.runtime.journal import NAME as RECORDS
from fvit.runtime.truth import read_truth
from tests.commands import Ended, ended, here, started

FAST = ("--n", "40", "--alpha", "0.1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out compositions beside the masks of their digits, in a folder a class."""
    place = tmp_path_factory.mktemp("data")
    drawn = compositions(6, seed=1, split="held-out")
    for number, (image, label, mask) in enumerate(zip(drawn.images, drawn.labels, drawn.masks, strict=True)):
        for kind, pixels in (("images", image), ("masks", mask)):
            folder = place / kind / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return place


def tables(out: Path) -> dict[str, Any]:
    found = json.loads((out / TABLES).read_text())
    assert isinstance(found, dict)
    return found


def test_tables_of_the_embedded_model(
    vit: fvit.FaithfulViT, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "load", lambda *_, **__: nullcontext(vit))
    monkeypatch.setattr("fvit.evaluation.cli.console.width", 200)
    arguments = (vit.bundle.folder, data, "--out", tmp_path, *FAST, "--limit", "4", "--perturbed-n", "0")
    done = here("evaluate", *arguments)
    assert done.status == 0
    assert "images and masks, 6 images" in done.stderr
    assert f"everything is in {tmp_path / TABLES}" in done.stdout
    found = tables(tmp_path)
    for row in ("accuracy, plain", "class abstains", "mIoU, smoothed", "on the object, certified in"):
        assert row in done.stdout
    assert found["data"]["layout"] == "images and masks"
    assert (found["data"]["listed"], found["data"]["evaluated"]) == (6, 4)
    assert found["accuracy"]["plain"]["value"] >= 0.75
    assert {curve["model"] for curve in found["curves"]} == {"plain"}
    assert len((tmp_path / RECORDS).read_bytes().splitlines()) == 4
    assert all(
        Image.open(file).size == (3 * 64, 64) and file.stat().st_size < 6000
        for file in (tmp_path / "thumbnails").glob("*.webp")
    )
    assert len(read_truth(tmp_path)) == 4
    before = (tmp_path / TABLES).read_bytes()
    assert here("evaluate", *arguments, "--quiet") == Ended(0, "", "")
    assert (tmp_path / TABLES).read_bytes() == before


def test_bad_input_is_one_line(
    vit: fvit.FaithfulViT, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "load", lambda *_, **__: nullcontext(vit))
    out = ("--out", tmp_path / "out")

    def refused(*arguments: object) -> str:
        return here("evaluate", vit.bundle.folder, *arguments, *out).refusal

    assert "--perturbed-n 2 says nothing: give 4 copies or more, or 0" in refused(data, "--perturbed-n", "2")
    assert "Invalid value for '--perturbed-n'" in refused(data, "--perturbed-n", "1000000001")
    assert "does not exist" in refused(tmp_path / "absent")
    assert "cannot certify" in refused(data, "--n", "3")
    assert not (tmp_path / "out").exists()
    assert "Missing option '--out'" in here("evaluate", vit.bundle.folder, data).refusal
    said = here("evaluate", vit.bundle.folder, data, "--out", tmp_path / "out", "--attack-steps", "5").refusal
    assert "--attack-steps: of attacks, which --adversarial asks for" in said


def test_attacks_stand_beside_what_is_said_of_the_images_as_they_are(
    vit: fvit.FaithfulViT, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "load", lambda *_, **__: nullcontext(vit))
    monkeypatch.setattr(cli, "STEP_COPIES", 1)
    monkeypatch.setattr(adversarial, "JUDGED", 10)
    monkeypatch.setattr(adversarial, "CONFIRMED", 40)
    monkeypatch.setattr("fvit.evaluation.cli.console.width", 200)
    arguments = (vit.bundle.folder, data, "--out", tmp_path, *FAST, "--limit", "1", "--perturbed-n", "0")
    attacking = ("--adversarial", "--attack-steps", "1")
    done = here("evaluate", *arguments, *attacking)
    assert done.status == 0, done.stderr
    for words in ("accuracy, attacked, ℓ∞ 8/255, plain model", "accuracy, attacked, ℓ2 1 × radius, smoothed"):
        assert words in done.stdout
    found = tables(tmp_path)
    assert found["asked"]["attack_steps"] == 1
    assert len(found["adversarial"]["attacks"]) == 2 * 2 * 5
    before = (tmp_path / TABLES).read_bytes()
    assert here("evaluate", *arguments, *attacking, "--quiet") == Ended(0, "", "")
    assert (tmp_path / TABLES).read_bytes() == before
    other = here("evaluate", *arguments)
    assert other.status == 1
    assert "holds an evaluation with attack_steps = 1, not 0: choose another --out" in other.stderr


def test_attacks_without_torch_are_one_line(
    vit: fvit.FaithfulViT, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    said = here("evaluate", vit.bundle.folder, data, "--out", tmp_path / "out", "--adversarial").refusal
    assert said.endswith(
        "--adversarial needs the package 'torch', which is not installed: run  pip install 'fvit[export]'"
    )
    assert not (tmp_path / "out").exists()


def test_attacks_on_what_cannot_be_rebuilt_are_one_line(
    vit: fvit.FaithfulViT, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "load", lambda *_, **__: nullcontext(vit))
    out = ("--out", tmp_path / "out", "--adversarial")
    said = here("evaluate", vit.bundle.folder, data, *out, "--denoiser", data).refusal
    assert "is no diffusers model with a UNet2DModel" in said
    assert not (tmp_path / "out").exists()


def test_an_interruption_leaves_the_tables_of_what_is_done(
    demo_bundle: Path, data: Path, tmp_path: Path
) -> None:
    arguments = (demo_bundle, data, "--out", tmp_path, *FAST, "--n", "1000", "--perturbed-n", "0")
    process = started("evaluate", *arguments)
    file = tmp_path / MEASURES
    while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") > 2):
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGINT)
    end = ended(process)
    assert end.status == 130 and end.stderr.endswith("interrupted\n")
    done = len((tmp_path / MEASURES).read_bytes().splitlines()) - 1
    assert 2 <= tables(tmp_path)["data"]["evaluated"] <= done < 6
