from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from numpy.typing import NDArray

from fvit.engines.opening import open_engine
from fvit.errors import FvitError
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.denoisers import Diffusion, OneShotDenoiser, Resize, load_diffusers
from fvit.export.graphs import export_graph
from fvit.export.preconditioning import StepPrediction, VariancePreserving
from fvit.runtime.bundle import CLASSIFIER, DENOISER
from fvit.runtime.schedule import Schedule

torch_equal = 1e-4


def classify(demo_bundle: Path, images: torch.Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    outputs = open_engine(demo_bundle / CLASSIFIER, device="cpu").run({"images": images.numpy()})
    return outputs["logits"], outputs["attribution"]


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_exported_denoiser_equals_torch_row_by_row(teacher_bundle: Path, batch: int) -> None:
    """Every row with a level of its own, and torch with one row at a time."""
    from fvit.demo import models

    diffusion = load_diffusers(models.DENOISER)
    module = OneShotDenoiser(diffusion, image_size=(64, 64), output_size=(64, 64))
    generator = torch.Generator().manual_seed(batch)
    sigma = np.geomspace(0.1, 1.0, batch).astype(np.float32)
    noisy = torch.rand(batch, 3, 64, 64, generator=generator)
    noisy += torch.tensor(sigma)[:, None, None, None] * torch.randn(noisy.shape, generator=generator)
    timestep = diffusion.schedule.timestep(sigma).astype(np.float32)
    engine = open_engine(teacher_bundle / DENOISER, device="cpu")
    found = engine.run({"noisy": noisy.numpy(), "sigma": sigma, "timestep": timestep})["images"]
    for row in range(batch):
        inputs = (noisy[row : row + 1], *(torch.tensor(each[row : row + 1]) for each in (sigma, timestep)))
        with torch.no_grad():
            expected = module(*inputs).numpy()
        assert np.abs(found[row] - expected).max() <= torch_equal * np.abs(expected).max()


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "attention": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
    },
    "resampling by blocks, scale and shift": {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "resnet_time_scale_shift": "scale_shift",
    },
    "score model": {
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "time_embedding_type": "fourier",
        "block_out_channels": (32, 32),
        "norm_num_groups": None,
    },
    "learned steps": {
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "time_embedding_type": "learned",
        "num_train_timesteps": 1000,
    },
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_family_of_denoisers_takes_a_level_a_row(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"block_out_channels": (8, 16), "norm_num_groups": 4, "add_attention": False}
    architecture = {"sample_size": 16, "layers_per_block": 1} | options | ARCHITECTURES[name]
    unet = UNet2DModel(**architecture)
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "model")
    diffusion = load_diffusers(tmp_path / "model")
    module = OneShotDenoiser(diffusion, image_size=(16, 16), output_size=(16, 16))
    sigma = np.array([0.12, 0.25, 0.5, 1.0], np.float32)
    inputs = {
        "noisy": torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        "sigma": torch.tensor(sigma),
        "timestep": torch.tensor(diffusion.schedule.timestep(sigma), dtype=torch.float32),
    }
    export_graph(module, inputs, outputs=("images",), graph=tmp_path / "d.onnx")
    engine = open_engine(tmp_path / "d.onnx", device="cpu")
    found = engine.run({key: value.numpy() for key, value in inputs.items()})["images"]
    for row in range(4):
        with torch.no_grad():
            expected = module(*(value[row : row + 1] for value in inputs.values())).numpy()
        assert np.abs(found[row] - expected).max() <= torch_equal * np.abs(expected).max()


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_exported_classifier_equals_torch(demo_bundle: Path, batch: int) -> None:
    from fvit.demo import models

    module = ExplainedClassifier(models.load_classifier(models.TUNED))
    images = torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected = module(images)
    for found, value in zip(classify(demo_bundle, images), expected, strict=True):
        assert np.abs(found - value.numpy()).max() <= torch_equal * np.abs(value.numpy()).max()
        assert found.dtype == np.float32


def test_attribution_is_the_class_tokens_attention_in_the_last_block(demo_bundle: Path) -> None:
    """Recomputed from the block's own weights, without any hook."""
    from fvit.demo import models

    model = models.load_classifier(models.TUNED)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    entering: list[torch.Tensor] = []
    model.blocks[-1].register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
    with torch.no_grad():
        model((images - 0.5) / 0.5)
        block = model.blocks[-1]
        qkv = block.attn.qkv(block.norm1(entering[0])).reshape(3, 65, 3, 4, 32).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(-2, -1) / 32**0.5).softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)
    expected = (weights / weights.sum(dim=1, keepdim=True)).numpy()
    _, found = classify(demo_bundle, images)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-6)


class Oracle(torch.nn.Module):
    """A diffusion network that knows the clean image and answers as it should."""

    def __init__(self, clean: torch.Tensor, sigma: torch.Tensor, prediction: str) -> None:
        super().__init__()
        self.clean, self.prediction = 2 * clean - 1, prediction
        self.keep = 1 / (1 + 4 * sigma[:, None, None, None] ** 2)

    def forward(self, scaled: torch.Tensor, timestep: torch.Tensor) -> "Oracle":
        signal, noise = self.keep**0.5, (1 - self.keep) ** 0.5
        epsilon = (scaled - signal * self.clean) / noise
        answers = {
            "epsilon": epsilon,
            "v_prediction": signal * epsilon - noise * self.clean,
            "sample": self.clean,
        }
        variance = torch.full_like(scaled, 7.0)
        self.sample = torch.cat([answers[self.prediction], variance], dim=1)
        return self


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_one_step_recovers_the_image_from_a_perfect_network(prediction: StepPrediction) -> None:
    """Also with a learned variance in extra channels, which must be dropped, and at two levels at once."""
    sigma, generator = torch.tensor([0.5, 0.12]), torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, 8, 8, generator=generator)
    noisy = clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=generator)
    oracle = Oracle(clean, sigma, prediction)
    schedule = Schedule(np.array([0.9, 0.1]))
    diffusion = Diffusion(oracle, VariancePreserving(schedule, prediction), image_size=8)
    module = OneShotDenoiser(diffusion, image_size=(8, 8), output_size=(8, 8))
    assert torch.allclose(module(noisy, sigma, torch.zeros(2)), clean, atol=1e-5)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(FvitError, match="flow"):
        VariancePreserving(Schedule(np.array([0.9, 0.1])), "flow")  # type: ignore[arg-type]


@pytest.mark.parametrize(("source", "target"), [((64, 64), (56, 56)), ((32, 48), (64, 40))])
def test_resizing_by_matrices_is_torchs_antialiased_bicubic(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    images = torch.rand(2, 3, *source, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(images, target, mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.allclose(Resize(source, target)(images), expected, atol=1e-5)


def test_a_graph_that_differs_from_torch_is_an_error_not_a_warning(tmp_path: Path) -> None:
    class Moody(torch.nn.Module):
        """Constant while it is traced, something else each time that it is run."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x + self.calls

    with pytest.raises(FvitError, match="differs from torch"):
        export_graph(Moody(), {"x": torch.rand(4, 2)}, outputs=("y",), graph=tmp_path / "moody.onnx")


def test_a_graph_that_gives_no_number_is_an_error_too(tmp_path: Path) -> None:
    class Lost(torch.nn.Module):
        """Its first output is in order."""

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + 1, torch.log(-x)

    with pytest.raises(FvitError, match="differs from torch by nan"):
        export_graph(Lost(), {"x": torch.rand(4, 2)}, outputs=("y", "z"), graph=tmp_path / "lost.onnx")


def test_a_folder_that_is_no_diffusers_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FvitError, match="no diffusers model") as caught:
        load_diffusers(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_that_no_manifest_describes_is_refused_before_it_is_exported(tmp_path: Path) -> None:
    from fvit.demo import models
    from fvit.export.bundles import export_bundle

    with pytest.raises(FvitError, match="cannot hold this model: labels") as caught:
        export_bundle(
            tmp_path / "b",
            classifier=models.load_classifier(),
            classifier_name="one class",
            labels=("only",),
            denoiser=load_diffusers(models.DENOISER),
            denoiser_name="unet",
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()
