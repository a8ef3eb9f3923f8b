from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fvit.demo import models
from fvit.demo.data import compositions
from fvit.errors import FvitError
from fvit.export.checkpoints import load_tensors, read_tensors
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.comparing import HeldOut, Measured
from fvit.export.rebuilding import rebuild
from fvit.export.training import Settings
from fvit.export.tuning import (
    KEPT,
    Averaged,
    Clean,
    TunedAsked,
    lost,
    out_of_order,
    train_classifier,
    tune_bundle,
)
from fvit.runtime.bundle import CLASSIFIER, open_bundle, seal, write_bundle
from tests.commands import here, last_line
from tests.export.test_distill import Pixels

QUIET = Console(quiet=True)
DRAWN = compositions(72, seed=3, split="train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(DRAWN.images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    for number, mask in enumerate(DRAWN.masks):
        Image.fromarray(mask).save(folder / f"{number}.bmp")
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


@pytest.mark.parametrize("explanation", ["attention", "rollout", "gradient-attention"])
def test_explanations_of_every_kind_can_be_tuned(explanation: str, tmp_path: Path) -> None:
    losses = tuned(explanation, tmp_path, Pixels())
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_only_first_tokens_that_do_not_lead_are_out_of_order() -> None:
    wanted = 0.5 ** torch.arange(12.0) / (2 - 0.5**11)
    found = torch.stack([wanted, wanted, wanted.flip(0)])
    found[1, [9, 10]] = found[1, [10, 9]]
    kept, swapped, turned = (20 * out_of_order(wanted.expand(3, -1), found)).tolist()  # of ten and two
    logs = (0.95 * found + 0.05 / 12).log()
    assert kept < 0.03
    # The tenth lies behind one other token, and the other nine lead as before.
    assert swapped - kept == pytest.approx(float(logs[1, 10] - logs[1, 9]), rel=0.2)
    # Each of the first ten lies behind both others.
    assert turned == pytest.approx(float((logs[2, 10:, None] - logs[2, None, :10]).sum()), rel=0.01)


def test_the_order_that_is_asked_for_is_that_of_averaged_weights_over_all_views() -> None:
    """The first step's average are the weights themselves; each later step moves it by a hundredth."""
    both = Averaged(ExplainedClassifier(models.load_classifier()))
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    apart = ExplainedClassifier(models.load_classifier())
    tuned = ExplainedClassifier(models.load_classifier(models.TUNED))
    with torch.no_grad():
        _, alone = apart(images)
        logits, attribution, steady = both(images[:4], images.view(3, 2, 3, 64, 64))
        assert torch.allclose(logits, apart(images)[0][:4], atol=1e-5)
        assert torch.allclose(attribution, alone[:4], atol=1e-7)
        assert torch.allclose(steady, alone.view(3, 2, -1).mean(dim=0), atol=1e-7)
        both.classifier.load_state_dict(tuned.state_dict())
        for moving, target in zip(apart.parameters(), tuned.parameters(), strict=True):
            moving.lerp_(target, 1 - KEPT)
        found, expected = both(images, images[None])[2], apart(images)[1]
    assert torch.allclose(found, expected, atol=1e-7)
    assert not torch.allclose(found, alone, atol=1e-5)
    assert not any(each.requires_grad for each in both.average.parameters())


def test_a_killed_tuning_goes_on_to_the_same_curve(tmp_path: Path) -> None:
    whole = tuned("attention", tmp_path / "whole", Pixels(), steps=8)
    with pytest.raises(KeyboardInterrupt):
        tuned("attention", tmp_path / "broken", Pixels(ends=5), steps=8)
    assert tuned("attention", tmp_path / "broken", Pixels(), steps=8) == whole


def test_a_tuned_bundle_names_what_it_was_tuned_from(
    demo_bundle: Path, folder: Path, masks: Path, tmp_path: Path
) -> None:
    asked = TunedAsked(held_out=4, n=32, masks=masks)
    console = Console(record=True, width=120, file=(tmp_path / "said").open("w"))
    tune_bundle(
        demo_bundle, tmp_path / "b", images=folder, asked=asked,
        settings=Settings(rate=1e-4, batch=8, steps=3), console=console,
    )  # fmt: skip
    before, after = open_bundle(demo_bundle), open_bundle(tmp_path / "b")
    assert after.manifest.tuned_from is not None
    assert (after.manifest.tuned_from.name, after.manifest.tuned_from.bundle) == (
        "fvit-demo-vit-tuned", before.digest,
    )  # fmt: skip
    assert after.manifest.files["denoiser.onnx"] == before.manifest.files["denoiser.onnx"]
    assert after.manifest.files[CLASSIFIER] != before.manifest.files[CLASSIFIER]
    said = console.export_text()
    assert "before" in said
    assert "top 10 shared" in said
    tables = [line for line in said.splitlines() if not line.startswith("lost:")]
    assert sum("on the object" in line for line in tables) == 2
    # It can be tuned again from the weights beside it, and from none but those.
    rebuild(after, weights=tmp_path / "b.training" / "classifier.safetensors")
    with pytest.raises(FvitError, match="was not exported from these weights"):
        rebuild(after, weights=None)


def test_weights_are_named_as_the_model_has_them_whatever_explains_it(tmp_path: Path) -> None:
    """attribution-rollout puts modules of its own in the model."""
    model = models.load_classifier()
    names = [*model.state_dict()]
    explained = ExplainedClassifier(model, explanation="attribution-rollout")
    assert [*explained.weights()] == names != [*explained.model.state_dict()]
    load_tensors(models.new_classifier(), explained.weights(), file=tmp_path)


def test_weights_that_do_not_fit_the_embedded_classifier_are_one_line(
    demo_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    bundle = open_bundle(demo_bundle)
    with pytest.raises(FvitError, match=r"other\.pth does not fit the model"):
        rebuild(bundle, weights=tmp_path / "other.pth")
    with pytest.raises(FvitError, match=r"photo\.png cannot be read as a checkpoint|holds more than tensors"):
        rebuild(bundle, weights=photo)


@pytest.mark.parametrize("content", [b"", b"\n", b"\x80\x02.", b"\x80\x02}q\x00.", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_checkpoint_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(FvitError, match=r"weights\.pth (cannot be read as a checkpoint: \S|holds more)"):
        read_tensors(file)


def test_what_never_ends_is_no_checkpoint() -> None:
    with pytest.raises(FvitError, match="/dev/zero is no regular file"):
        read_tensors(Path("/dev/zero"))


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
    done = here("export", "tune", named, tmp_path / "out", "--images", folder, "--held-out", "4")
    assert "cannot be rebuilt: timm knows no model 'mine'" in last_line(done)
    assert not (tmp_path / "out").exists()


def test_everything_that_fell_is_said_and_nothing_else() -> None:
    before = Measured(0.25, "fp32", accuracy=0.9, certified=0.8, radius=0.2, on_object=None, speed=100)
    after = Measured(0.25, "fp32", accuracy=0.9, certified=0.75, radius=0.3, on_object=None, speed=50)
    assert [*lost(before, after, where="at σ = 0.25")] == [
        "lost: certified accuracy at σ = 0.25 fell from 0.800 to 0.750"
    ]
    clean = Clean(10, 0.9, 1.0, 0.9), Clean(10, 0.95, 0.8, 0.85)
    assert [*lost(clean[1], Clean(10, 0.95 - 1e-6, 0.8, 0.85), where="")] == []  # a sum in another order
    assert [*lost(*clean, where="on clean images")] == [
        "lost: share on the object on clean images fell from 0.900 to 0.850"
    ]


def test_the_share_on_the_object_is_that_of_tokens_that_its_mask_touches(
    demo_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    """One pixel in the token at the first row, second column, of 8×8 pixels each."""
    mask = np.zeros((64, 64), np.uint8)
    mask[7, 8] = 255
    Image.fromarray(mask).save(tmp_path / "3.png")
    held_out = HeldOut.of(
        open_bundle(demo_bundle), [str(folder / "3.png")], images=folder, asked=TunedAsked(masks=tmp_path)
    )
    assert held_out.on_object([[0, 1, 2, 8]]) == 0.25
    with pytest.raises(FvitError, match=r"\* is no folder"):
        HeldOut.of(
            open_bundle(demo_bundle), [str(folder / "3.png")], images=folder / "*",
            asked=TunedAsked(masks=tmp_path),
        )  # fmt: skip
    with pytest.raises(FvitError, match=r"4\.png has no mask"):
        HeldOut.of(
            open_bundle(demo_bundle), [str(folder / "4.png")], images=folder, asked=TunedAsked(masks=tmp_path)
        )
