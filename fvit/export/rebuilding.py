"""A bundle's classifier -> the torch model that it was exported from, so that it can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvit.engines.opening import open_engine
from fvit.errors import FvitError
from fvit.export.bundles import ROWS
from fvit.export.classifiers import ExplainedClassifier, load_classifier
from fvit.export.graphs import run_torch
from fvit.runtime.bundle import Bundle

EMBEDDED = "fvit-demo-vit"
"""What the embedded classifier is called, which timm does not know."""

OUTPUTS = ("logits", "attribution")

LARGEST_DIFFERENCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.1}
"""Root mean square of the logits' difference between graph and torch, relative to the logits' own."""


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
            f"{bundle.folder} cannot be tuned: {error}; --classifier-weights takes the checkpoint that "
            f"{manifest.classifier} was exported from"
        ) from error
    if module.size != manifest.classifier_size or model.num_classes != len(manifest.labels):
        raise FvitError(
            f"{bundle.folder} cannot be tuned: {manifest.classifier} with these weights has another image "
            "size or other classes than the bundle's"
        )
    images = example(module)
    found = open_engine(bundle.classifier, device="cpu").run({"images": images.numpy()})["logits"]
    expected = run_torch(module, {"images": images}, outputs=OUTPUTS)["logits"]
    difference = float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(found**2)))
    if not difference <= LARGEST_DIFFERENCE[manifest.precision]:
        raise FvitError(
            f"{bundle.folder} cannot be tuned: its classifier was not exported from these weights of "
            f"{manifest.classifier} (logits differ by {difference:.1%}): give them with --classifier-weights"
        )
    return module


def example(module: ExplainedClassifier) -> torch.Tensor:
    """Images that a classifier is exported and compared with."""
    return torch.rand(ROWS, 3, *module.size, generator=torch.Generator().manual_seed(0))


def _model(name: str, weights: Path | None) -> Any:
    if name != EMBEDDED:
        return load_classifier(name, weights=weights)
    from fvit.demo import models

    return models.load_classifier() if weights is None else models.load_classifier(weights)
