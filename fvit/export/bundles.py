"""A classifier and a denoiser -> a sealed bundle."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fvit.engines.onnxruntime import ROWS
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.denoisers import Diffusion, OneShotDenoiser, check_size, load_diffusers
from fvit.export.graphs import export_graph
from fvit.runtime.bundle import CLASSIFIER, DENOISER, Manifest, seal, write_bundle


def export_demo(folder: Path) -> dict[str, float]:
    """Write the embedded FViT as a bundle; returns each graph's largest relative error."""
    from fvit.demo import models
    from fvit.demo.data import LABELS

    return export_bundle(
        folder,
        classifier=models.load_classifier(),
        classifier_name="fvit-demo-vit",
        labels=LABELS,
        diffusion=load_diffusers(models.DENOISER),
        denoiser_name="fvit-demo-unet",
    )


def export_bundle(
    folder: Path,
    *,
    classifier: nn.Module,
    classifier_name: str,
    labels: tuple[str, ...],
    diffusion: Diffusion,
    denoiser_name: str,
    explanation: str = "attention",
    image_size: int | None = None,
) -> dict[str, float]:
    """Export both graphs, check them against torch, and seal the bundle.

    Raises FvitError where a graph differs from torch or the folder cannot be written; then nothing
    is left behind. image_size: of the copies, the denoiser's training size unless told; the classifier
    gets its own size, by resizing.
    """
    side = image_size or diffusion.image_size
    check_size(diffusion.unet, side)
    size = (side, side)
    explained = ExplainedClassifier(classifier, explanation=explanation)
    denoiser = OneShotDenoiser(diffusion, image_size=size, output_size=explained.size)
    sigma = 0.25
    draw = torch.Generator().manual_seed(0)
    noisy = {
        "noisy": 0.5 + sigma * torch.randn(4, 3, *size, generator=draw),
        "sigma": torch.tensor(sigma),
        "timestep": torch.tensor(diffusion.schedule.timestep(sigma)),
    }
    # A graph with a backward pass keeps this batch; it is the engine's own portion on a CPU.
    images = {"images": torch.rand(ROWS, 3, *explained.size, generator=draw)}
    with write_bundle(folder) as temporary:
        errors = {
            DENOISER: export_graph(denoiser, noisy, outputs=("images",), graph=temporary / DENOISER),
            CLASSIFIER: export_graph(
                explained,
                images,
                outputs=("logits", "attribution"),
                graph=temporary / CLASSIFIER,
                backward=explained.needs_gradients,
            ),
        }
        manifest = Manifest(
            classifier=classifier_name,
            denoiser=denoiser_name,
            labels=labels,
            image_size=size,
            classifier_size=explained.size,
            grid=explained.grid,
            mean=tuple(explained.mean.flatten().tolist()),
            std=tuple(explained.std.flatten().tolist()),
            explanation=explanation,
            precision="fp32",
            prediction=diffusion.prediction,
            alphas_cumprod=tuple(diffusion.schedule.alphas_cumprod.tolist()),
            fractional_timesteps=diffusion.schedule.fractional,
        )
        seal(temporary, manifest)
    return errors
