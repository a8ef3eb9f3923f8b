"""A classifier and a denoiser -> a sealed bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fvit.export.classifiers import ExplainedClassifier
from fvit.export.denoisers import OneShotDenoiser, load_diffusers
from fvit.export.graphs import export_graph
from fvit.runtime.bundle import CLASSIFIER, DENOISER, Manifest, seal, write_bundle
from fvit.runtime.schedule import Schedule


def export_demo(folder: Path) -> dict[str, float]:
    """Write the embedded FViT as a bundle; returns each graph's largest relative error."""
    from fvit.demo import models
    from fvit.demo.data import LABELS

    unet, schedule, prediction = load_diffusers(models.DENOISER)
    return export_bundle(
        folder,
        classifier=models.load_classifier(),
        classifier_name="fvit-demo-vit",
        labels=LABELS,
        unet=unet,
        denoiser_name="fvit-demo-unet",
        schedule=schedule,
        prediction=prediction,
    )


def export_bundle(
    folder: Path,
    *,
    classifier: nn.Module,
    classifier_name: str,
    labels: tuple[str, ...],
    unet: Any,
    denoiser_name: str,
    schedule: Schedule,
    prediction: str,
) -> dict[str, float]:
    """Export both graphs, check them against torch, and seal the bundle.

    Raises FvitError where a graph differs from torch or the folder cannot be written; then nothing
    is left behind.
    """
    size = (int(unet.config.sample_size),) * 2
    explained = ExplainedClassifier(classifier)
    denoiser = OneShotDenoiser(unet, prediction=prediction, image_size=size, output_size=explained.size)
    sigma = 0.25
    draw = torch.Generator().manual_seed(0)
    noisy = {
        "noisy": 0.5 + sigma * torch.randn(4, 3, *size, generator=draw),
        "sigma": torch.tensor(sigma),
        "timestep": torch.tensor(schedule.timestep(sigma)),
    }
    images = {"images": torch.rand(4, 3, *explained.size, generator=draw)}
    with write_bundle(folder) as temporary:
        errors = {
            DENOISER: export_graph(denoiser, noisy, outputs=("images",), graph=temporary / DENOISER),
            CLASSIFIER: export_graph(
                explained, images, outputs=("logits", "attribution"), graph=temporary / CLASSIFIER
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
            explanation="attention",
            precision="fp32",
            prediction=prediction,
            alphas_cumprod=tuple(schedule.alphas_cumprod.tolist()),
            fractional_timesteps=schedule.fractional,
        )
        seal(temporary, manifest)
    return errors
