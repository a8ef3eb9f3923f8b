from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fvit.demo import models
from fvit.demo.data import compositions
from fvit.errors import FvitError
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.rebuilding import rebuild
from fvit.export.training import Settings
from fvit.export.tuning import TunedAsked, train_classifier, tune_bundle
from fvit.runtime.bundle import CLASSIFIER, open_bundle, seal, write_bundle
from tests.export.test_cli import last_line, run
from tests.export.test_distill import Pixels

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(compositions(72, seed=3, split="train").images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def tuned(explanation: str, work: Path, images: Pixels, *, steps: int = 30) -> list[float]:
    """The embedded classifier, tuned on noisy images that nothing denoises."""
    original, changed = (
        ExplainedClassifier(models.load_classifier(), explanation=explanation) for _ in range(2)
    )
    settings = Settings(rate=3e-4, batch=16, steps=steps, checkpoint=0)
    return train_classifier(
        changed,
        original,
        images,
        settings,
        denoise=lambda noisy, sigma: noisy.clamp(0, 1),
        sigmas=(0.2, 0.3),
        work=work,
        console=QUIET,
    )


@pytest.mark.parametrize("explanation", ["attention", "gradient-attention"])
def test_explanations_of_every_kind_can_be_tuned(explanation: str, tmp_path: Path) -> None:
    losses = tuned(explanation, tmp_path, Pixels())
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_a_killed_tuning_goes_on_to_the_same_curve(tmp_path: Path) -> None:
    whole = tuned("attention", tmp_path / "whole", Pixels(), steps=8)
    with pytest.raises(KeyboardInterrupt):
        tuned("attention", tmp_path / "broken", Pixels(ends=5), steps=8)
    assert tuned("attention", tmp_path / "broken", Pixels(), steps=8) == whole


def test_a_tuned_bundle_names_what_it_was_tuned_from(demo_bundle: Path, folder: Path, tmp_path: Path) -> None:
    asked = TunedAsked(held_out=4, n=32)
    console = Console(record=True, width=120, file=(tmp_path / "said").open("w"))
    tune_bundle(
        demo_bundle, tmp_path / "b", images=folder, asked=asked,
        settings=Settings(rate=1e-4, batch=8, steps=3), console=console,
    )  # fmt: skip
    before, after = open_bundle(demo_bundle), open_bundle(tmp_path / "b")
    assert after.manifest.tuned_from is not None
    assert (after.manifest.tuned_from.name, after.manifest.tuned_from.bundle) == (
        "fvit-demo-vit", before.digest,
    )  # fmt: skip
    assert after.manifest.files["denoiser.onnx"] == before.manifest.files["denoiser.onnx"]
    assert after.manifest.files[CLASSIFIER] != before.manifest.files[CLASSIFIER]
    said = console.export_text()
    assert "before" in said
    assert "top 10 shared" in said
    # It can be tuned again from the weights beside it, and from none but those.
    rebuild(after, weights=tmp_path / "b.training" / "classifier.safetensors")
    with pytest.raises(FvitError, match="was not exported from these weights"):
        rebuild(after, weights=None)


def changed(bundle: Path, target: Path, **fields: object) -> Path:
    opened = open_bundle(bundle)
    with write_bundle(target) as temporary:
        for name in opened.manifest.files:
            (temporary / name).write_bytes((bundle / name).read_bytes())
        seal(temporary, opened.manifest.model_copy(update=fields))
    return target


def test_a_classifier_that_timm_does_not_know_is_refused_by_name(
    demo_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    named = changed(demo_bundle, tmp_path / "named", classifier="mine")
    done = run("fvit-export", "tune", named, tmp_path / "out", "--images", folder, "--held-out", "4")
    assert done.returncode == 1
    assert "cannot be rebuilt: timm knows no model 'mine'" in last_line(done)
    assert not (tmp_path / "out").exists()
