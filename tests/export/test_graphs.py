from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fvit
from fvit.errors import FvitError
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.denoisers import Diffusion, OneShotDenoiser, Resize, load_diffusers
from fvit.export.graphs import export_graph
from fvit.runtime.bundle import open_bundle
from fvit.runtime.schedule import Schedule

torch_equal = 1e-4


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_exported_denoiser_equals_torch(vit: fvit.FaithfulViT, batch: int) -> None:
    from fvit.demo import models

    diffusion = load_diffusers(models.DENOISER)
    module = OneShotDenoiser(diffusion, image_size=(64, 64), output_size=(64, 64))
    generator = torch.Generator().manual_seed(batch)
    for sigma in (0.1, 0.5):
        noisy = torch.rand(batch, 3, 64, 64, generator=generator)
        noisy += sigma * torch.randn(noisy.shape, generator=generator)
        with torch.no_grad():
            expected = module(
                noisy, torch.tensor(sigma), torch.tensor(diffusion.schedule.timestep(sigma))
            ).numpy()
        found = vit.pipeline.denoise(noisy.numpy(), sigma=sigma)
        assert np.abs(found - expected).max() <= torch_equal * np.abs(expected).max()


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_exported_classifier_equals_torch(vit: fvit.FaithfulViT, batch: int) -> None:
    from fvit.demo import models

    module = ExplainedClassifier(models.load_classifier())
    images = torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected = module(images)
    for found, value in zip(vit.pipeline.classify(images.numpy()), expected, strict=True):
        assert np.abs(found - value.numpy()).max() <= torch_equal * np.abs(value.numpy()).max()
        assert found.dtype == np.float32


def test_attribution_is_the_class_tokens_attention_in_the_last_block(vit: fvit.FaithfulViT) -> None:
    """Recomputed from the block's own weights, without any hook."""
    from fvit.demo import models

    model = models.load_classifier()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    entering: list[torch.Tensor] = []
    model.blocks[-1].register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
    with torch.no_grad():
        model((images - 0.5) / 0.5)
        block = model.blocks[-1]
        qkv = block.attn.qkv(block.norm1(entering[0])).reshape(3, 65, 3, 4, 32).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(-2, -1) / 32**0.5).softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)
    expected = (weights / weights.sum(dim=1, keepdim=True)).numpy()
    _, found = vit.pipeline.classify(images.numpy())
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-6)


class Oracle(torch.nn.Module):
    """A diffusion network that knows the clean image and answers as it should."""

    def __init__(self, clean: torch.Tensor, sigma: float, prediction: str) -> None:
        super().__init__()
        self.clean, self.prediction = 2 * clean - 1, prediction
        self.keep = 1 / (1 + 4 * sigma**2)

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
def test_one_step_recovers_the_image_from_a_perfect_network(prediction: str) -> None:
    """Also with a learned variance in extra channels, which must be dropped."""
    sigma, generator = 0.5, torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, 8, 8, generator=generator)
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    oracle = Oracle(clean, sigma, prediction)
    schedule = Schedule(np.array([0.9, 0.1]))
    diffusion = Diffusion(oracle, schedule, prediction=prediction, image_size=8)
    module = OneShotDenoiser(diffusion, image_size=(8, 8), output_size=(8, 8))
    assert torch.allclose(module(noisy, torch.tensor(sigma), torch.tensor(0.0)), clean, atol=1e-5)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(FvitError, match="flow"):
        Diffusion(torch.nn.Identity(), Schedule(np.array([0.9, 0.1])), prediction="flow", image_size=8)


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


def test_a_folder_that_is_no_diffusers_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FvitError, match="no diffusers model") as caught:
        load_diffusers(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_same_model_exports_to_the_same_bytes(demo_bundle: Path, tmp_path: Path) -> None:
    from fvit.export.bundles import export_demo

    export_demo(tmp_path / "again")
    assert open_bundle(tmp_path / "again").digest == open_bundle(demo_bundle).digest
