"""A bundle's networks -> the torch models that they were exported from, which can be differentiated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fvit.engines.opening import open_engine
from fvit.errors import FvitError
from fvit.export.bundles import ROWS
from fvit.export.calibration import calibration_images, denoiser_feeds
from fvit.export.checkpoints import load_tensors, read_tensors
from fvit.export.classifiers import ExplainedClassifier, load_classifier
from fvit.export.denoisers import Diffusion
from fvit.export.graphs import run_torch
from fvit.export.loading import load_denoiser
from fvit.export.restoration import Restoration
from fvit.export.students import Distilled
from fvit.runtime.bundle import Bundle

EMBEDDED = "fvit-demo-"
"""How the names of the embedded networks begin, which timm and the hub do not know."""

OUTPUTS = ("logits", "attribution")

LARGEST_DIFFERENCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.1}
"""Root mean square of the difference between graph and torch, relative to the standard deviation of the
logits, or of denoised images. The embedded denoiser's int8 graph differs by 0.06; with weights that are each
off by 10 % it is 0.19."""


def rebuild(bundle: Bundle, *, weights: Path | None) -> ExplainedClassifier:
    """The explained classifier in float32 and evaluation mode, whose logits are checked against the graph's.

    A graph's weights are folded and renamed, so they are loaded from where they were exported from: timm's
    pretrained ones of the name in the manifest, the embedded ones, or a checkpoint. Raises FvitError where
    they cannot be had, or are not what the graph was exported from.
    """
    manifest = bundle.manifest
    explained = manifest.explained if isinstance(manifest.explained, int) else None
    try:
        model = _model(manifest.classifier, weights)
        module = ExplainedClassifier(model, explanation=manifest.explanation, explained=explained)
    except FvitError as error:
        raise FvitError(
            f"the classifier of {bundle.folder} cannot be rebuilt: {error}; --classifier-weights takes the "
            f"checkpoint that {manifest.classifier} was exported from"
        ) from error
    if module.size != manifest.classifier_size or model.num_classes != len(manifest.labels):
        raise FvitError(
            f"the classifier of {bundle.folder} cannot be rebuilt: {manifest.classifier} with these weights "
            "has another image size or other classes than the bundle's"
        )
    images = example(module)
    found = open_engine(bundle.classifier, device="cpu").run({"images": images.numpy()})["logits"]
    expected = run_torch(module, {"images": images}, outputs=OUTPUTS)["logits"]
    difference = _difference(found, expected)
    if not difference <= LARGEST_DIFFERENCE[manifest.precision]:
        raise FvitError(
            f"the classifier of {bundle.folder} was not exported from these weights of "
            f"{manifest.classifier} (logits differ by {difference:.1%}): give them with --classifier-weights"
        )
    return module


def rebuild_denoiser(
    bundle: Bundle, *, place: str | None, adm_flags: str | None = None, null_class: int | None = None
) -> nn.Module:
    """The denoiser in float32 and evaluation mode, whose images are checked against the graph's.

    place and the others: as `fvit-export model` takes them; without a place it is the embedded one. Raises
    FvitError where it cannot be had, or is not what the graph was exported from.
    """
    manifest = bundle.manifest
    source: Diffusion | Restoration | Distilled
    if place is not None:
        source = load_denoiser(place, adm_flags=adm_flags, null_class=null_class)
    elif manifest.denoiser.startswith(EMBEDDED):
        from fvit.demo import models

        source = models.load_denoiser(manifest.denoiser)
    elif manifest.teacher is not None:
        raise FvitError(
            f"the denoiser of {bundle.folder} is a student, of which nothing but the graph is kept, and that "
            f"has no gradients: attack the bundle of its teacher, {manifest.teacher.name}"
        )
    else:
        raise FvitError(
            f"the denoiser of {bundle.folder} is a graph, which has no gradients: give with --denoiser what "
            f"{manifest.denoiser} was exported from"
        )
    module = source.one_shot(image_size=manifest.image_size, output_size=manifest.classifier_size)
    images = calibration_images(None, size=manifest.image_size)[:ROWS]
    (feeds,) = denoiser_feeds(images, manifest.schedule, rows=ROWS)
    found = open_engine(bundle.denoiser, device="cpu").run(feeds)["images"]
    inputs = {name: torch.from_numpy(each) for name, each in feeds.items()}
    difference = _difference(found, run_torch(module, inputs, outputs=("images",))["images"])
    if not difference <= LARGEST_DIFFERENCE[manifest.precision]:
        raise FvitError(
            f"the denoiser of {bundle.folder} was not exported from {place or manifest.denoiser} (images "
            f"differ by {difference:.1%}): "
            + (
                f"it is a student; attack the bundle of its teacher, {manifest.teacher.name}"
                if manifest.teacher is not None
                else f"give with --denoiser what {manifest.denoiser} was exported from"
            )
        )
    return module


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2)) / found.std())


def example(module: ExplainedClassifier) -> torch.Tensor:
    """Images that a classifier is exported and compared with."""
    return torch.rand(ROWS, 3, *module.size, generator=torch.Generator().manual_seed(0))


def _model(name: str, weights: Path | None) -> Any:
    if not name.startswith(EMBEDDED):
        return load_classifier(name, weights=weights)
    from fvit.demo import models

    model = models.load_classifier(models.weights_of(name))
    if weights is not None:
        load_tensors(model, read_tensors(weights), file=weights)
    return model
