import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from fvit.runtime.bundle import open_bundle
from tests.commands import here, largest_file, last_line


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What --no-pretrained draws is the same whatever ran before."""
    torch.manual_seed(0)


def _denoiser(folder: Path, *, scheduler: dict[str, object] | None = None, **options: object) -> Path:
    torch.manual_seed(0)
    architecture = {
        "sample_size": 32, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
    }  # fmt: skip
    unet = UNet2DModel(**{**architecture, **options})
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler(**(scheduler or {}))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _denoiser(tmp_path_factory.mktemp("denoiser") / "unet")


def test_a_timm_model_behind_a_local_denoiser_certifies_a_photo(denoiser: Path, tmp_path: Path) -> None:
    done = here(
        "export", "model", tmp_path / "bundle", "--classifier", "test_vit", "--no-pretrained", "--denoiser",
        denoiser, "--image-size", "64", "--explanation", "gradcam", "--explain", "goldfish",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.explanation, manifest.explained) == ("gradcam", 1)
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    done = here("certify", tmp_path / "bundle", tmp_path / "photo.jpg", "--n", "32", "--batch", "10")
    assert done.status == 0, done.stderr
    assert "photo" in done.stdout


def test_a_hub_name_without_a_network_says_which_flag_takes_a_local_file(
    denoiser: Path, tmp_path: Path
) -> None:
    done = here(
        "export", "model", tmp_path / "b", "--classifier", "vit_tiny_patch16_224", "--denoiser", denoiser
    )  # fmt: skip
    assert "--classifier-weights" in last_line(done)
    done = here(
        "export", "model", tmp_path / "b", "--classifier", "vit_tiny_patch16_224", "--no-pretrained",
        "--denoiser", "google/ddpm-church-256",
    )  # fmt: skip
    assert "local folder with --denoiser" in last_line(done)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path) -> None:
    """No file may grow beyond 3 MB: the graphs cannot be written whole."""
    with largest_file(3_000_000):
        done = here("export", "demo", tmp_path / "b", "--precision", "int8")
    assert "cannot write" in last_line(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("explanation", "explain", "message"),
    [
        ("lrp", "goldfisch", "no class is called 'goldfisch': did you mean goldfish"),
        ("attention", "1", "attention is the same for every class"),
    ],
)
def test_a_class_that_cannot_be_explained_is_refused(
    explanation: str, explain: str, message: str, denoiser: Path, tmp_path: Path
) -> None:
    done = here(
        "export", "model", tmp_path / "b", "--classifier", "vit_tiny_patch16_224", "--no-pretrained",
        "--denoiser", denoiser, "--explanation", explanation, "--explain", explain,
    )  # fmt: skip
    assert message in last_line(done)
    assert not (tmp_path / "b").exists()


def test_adm_flags_belong_to_a_checkpoint_file(denoiser: Path, tmp_path: Path) -> None:
    done = here(
        "export", "model", tmp_path / "b", "--classifier", "vit_tiny_patch16_224", "--no-pretrained",
        "--denoiser", denoiser, "--adm-flags", "--num_heads 4",
    )  # fmt: skip
    assert "checkpoint file" in last_line(done)


@pytest.mark.parametrize(
    ("options", "scheduler", "message"),
    [
        ({"in_channels": 1, "out_channels": 1}, {}, "turns 1 channels into 1"),
        ({"num_class_embeds": 10}, {}, "needs a class label"),
        ({}, {"prediction_type": "flow"}, "predicts 'flow'"),
    ],
)
def test_denoisers_that_do_not_fit_are_refused(
    options: dict[str, object], scheduler: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = _denoiser(tmp_path / "unet", scheduler=scheduler, **options)
    done = here(
        "export", "model", tmp_path / "b", "--classifier", "vit_tiny_patch16_224", "--no-pretrained",
        "--denoiser", folder,
    )  # fmt: skip
    assert message in last_line(done)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.denoisers:make", "No module named 'absent'"),
        ("json:loads", "--denoiser json:loads fails: TypeError"),
    ],
)
def test_a_callable_that_makes_no_denoiser_is_refused(name: str, message: str, tmp_path: Path) -> None:
    arguments = (
        "export", "model", tmp_path / "b", "--classifier", "vit_tiny_patch16_224", "--no-pretrained",
        "--denoiser", name,
    )  # fmt: skip
    done = here(*arguments)
    assert message in last_line(done)
    done = here(*arguments, "--null-class", "10")
    assert "--null-class is a class of a diffusers model" in last_line(done)


def test_an_image_size_that_the_denoiser_cannot_halve_is_refused(denoiser: Path, tmp_path: Path) -> None:
    done = here(
        "export", "model", tmp_path / "b", "--classifier", "vit_tiny_patch16_224", "--no-pretrained",
        "--denoiser", denoiser, "--image-size", "63",
    )  # fmt: skip
    assert "multiple of 2" in last_line(done)


def test_the_embedded_model_explains_what_it_is_asked_to_or_says_why_not(tmp_path: Path) -> None:
    done = here("export", "demo", tmp_path / "b", "--explain", "3")
    assert "attention is the same for every class" in last_line(done)
    done = here("export", "demo", tmp_path / "b", "--explanation", "gradcam", "--explain", "ten")
    assert "no class is called 'ten'" in last_line(done)
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is not None, reason="there may be a GPU")
def test_plans_without_a_gpu_are_one_clear_line(demo_bundle: Path) -> None:
    done = here("export", "engine", demo_bundle)
    assert "pycuda" in last_line(done)
    for device in ("cpu", "cuda:" + "9" * 5000):
        done = here("export", "engine", demo_bundle, "--device", device)
        assert "such as cuda:0" in last_line(done)


@pytest.mark.parametrize("workspace", ["nan", "inf", "-1"])
def test_a_workspace_of_no_size_is_refused(workspace: str) -> None:
    assert "'--workspace'" in here("export", "engine", "b", "--workspace", workspace).refusal


def test_list_names_the_families() -> None:
    done = here("export", "list")
    assert done.status == 0
    assert "vit_base_patch16_224" in done.stdout
    assert "beit_base_patch16_224" in done.stdout
