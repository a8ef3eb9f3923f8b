"""A classifier and a denoiser -> a sealed bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fvit.engines.onnxruntime import ROWS
from fvit.export.classifiers import ExplainedClassifier, class_labels, load_classifier
from fvit.export.denoisers import OneShotDenoiser, check_size, load_diffusers
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


def export_model(
    folder: Path,
    *,
    classifier: str,
    classifier_weights: Path | None,
    pretrained: bool,
    denoiser: str,
    explanation: str,
    image_size: int | None,
    labels: Path | None,
) -> dict[str, float]:
    """Write a timm classifier and a diffusers denoiser as a bundle; returns each graph's largest
    relative error. Raises FvitError as load_classifier, load_diffusers and export_bundle do."""
    model = load_classifier(classifier, weights=classifier_weights, pretrained=pretrained)
    named = class_labels(model, file=labels)
    unet, schedule, prediction = load_diffusers(denoiser)
    return export_bundle(
        folder,
        classifier=model,
        classifier_name=classifier,
        labels=named,
        unet=unet,
        denoiser_name=denoiser,
        schedule=schedule,
        prediction=prediction,
        explanation=explanation,
        image_size=image_size,
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
    explanation: str = "attention",
    image_size: int | None = None,
) -> dict[str, float]:
    """Export both graphs, check them against torch, and seal the bundle.

    Raises FvitError where a graph differs from torch or the folder cannot be written; then nothing
    is left behind. image_size: of the copies, the denoiser's training size unless told; the classifier
    gets its own size, by resizing.
    """
    side = image_size or int(unet.config.sample_size)
    check_size(unet, side)
    size = (side, side)
    explained = ExplainedClassifier(classifier, explanation=explanation)
    denoiser = OneShotDenoiser(unet, prediction=prediction, image_size=size, output_size=explained.size)
    sigma = 0.25
    draw = torch.Generator().manual_seed(0)
    noisy = {
        "noisy": 0.5 + sigma * torch.randn(4, 3, *size, generator=draw),
        "sigma": torch.tensor(sigma),
        "timestep": torch.tensor(schedule.timestep(sigma)),
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
            prediction=prediction,
            alphas_cumprod=tuple(schedule.alphas_cumprod.tolist()),
            fractional_timesteps=schedule.fractional,
        )
        seal(temporary, manifest)
    return errors
