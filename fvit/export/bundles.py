"""A classifier and a denoiser -> a sealed bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from fvit.errors import FvitError
from fvit.export.calibration import calibration_images, classifier_feeds, denoiser_feeds
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.denoisers import Diffusion
from fvit.export.graphs import export_graph
from fvit.export.precision import Feeds, Quantised, precision_of, quantise
from fvit.export.restoration import Restoration
from fvit.export.students import Distilled
from fvit.runtime.bundle import CLASSIFIER, DENOISER, Manifest, Origin, seal, write_bundle
from fvit.runtime.schedule import Schedule

ROWS = 8
"""Copies of one calibration feed, and the batch of the classifier's example."""


@dataclass(frozen=True)
class Exported:
    """How a graph compares: its largest relative error against torch in fp32 (of the graph that was
    quantised, where it was), and what int8 cost beyond that."""

    error: float
    int8: Quantised | None = None


def export_demo(
    folder: Path,
    *,
    denoiser: str = "student",
    classifier: str = "tuned",
    explanation: str = "attention",
    explained: int | None = None,
    precision: str = "fp32",
) -> dict[str, Exported]:
    """Write the embedded FViT as a bundle; see export_bundle.

    denoiser: student or teacher; classifier: tuned or original. Raises FvitError for any other.
    """
    from fvit.demo import models
    from fvit.demo.data import LABELS

    for said, known in ((denoiser, models.DENOISERS), (classifier, models.CLASSIFIERS)):
        if said not in known:
            raise FvitError(f"'{said}' is none of the embedded networks: use {' or '.join(known)}")
    named = models.CLASSIFIERS[classifier]
    return export_bundle(
        folder,
        classifier=models.load_classifier(models.weights_of(named)),
        classifier_name=named,
        tuned_from=Origin(name=models.CLASSIFIERS["original"]) if classifier == "tuned" else None,
        labels=LABELS,
        denoiser=models.load_denoiser(models.DENOISERS[denoiser]),
        denoiser_name=models.DENOISERS[denoiser],
        teacher=Origin(name=models.DENOISERS["teacher"]) if denoiser == "student" else None,
        explanation=explanation,
        explained=explained,
        precision=precision,
    )


def export_bundle(
    folder: Path,
    *,
    classifier: nn.Module,
    classifier_name: str,
    labels: tuple[str, ...],
    denoiser: Diffusion | Restoration | Distilled,
    denoiser_name: str,
    teacher: Origin | None = None,
    tuned_from: Origin | None = None,
    explanation: str = "attention",
    explained: int | None = None,
    image_size: int | None = None,
    precision: str = "fp32",
    calibration: Path | None = None,
    on_progress: Callable[[str], Any] = lambda words: None,
) -> dict[str, Exported]:
    """Export both graphs, check them against torch, and seal the bundle.

    teacher, tuned_from: whose place the denoiser takes, and what the classifier was, where it is a student
    or was tuned. explained: the class that the explanation explains, each copy's own prediction unless told.
    image_size: of the copies, the denoiser's training size unless told; the classifier gets its own
    size, by resizing. precision: fp32, fp16 or int8; int8 is calibrated on the images of a folder, or
    on the demo's. on_progress is told what is being done. The torch modules are left in the precision
    that was exported. Raises FvitError where the manifest cannot describe the model, a graph differs from
    torch or the folder cannot be written; then nothing is left behind.
    """
    kind = precision_of(precision)
    side = image_size or denoiser.image_size
    size = (side, side)
    explaining = ExplainedClassifier(classifier, explanation=explanation, explained=explained)
    one_shot = denoiser.one_shot(image_size=size, output_size=explaining.size)
    try:
        manifest = Manifest(
            classifier=classifier_name,
            denoiser=denoiser_name,
            labels=labels,
            image_size=size,
            classifier_size=explaining.size,
            grid=explaining.grid,
            mean=tuple(explaining.mean.flatten().tolist()),
            std=tuple(explaining.std.flatten().tolist()),
            explanation=explanation,
            explained="predicted" if explaining.needs_gradients and explained is None else explained,
            precision=kind,
            prediction=denoiser.prediction,
            alphas_cumprod=tuple(denoiser.schedule.alphas_cumprod.tolist()),
            fractional_timesteps=denoiser.schedule.fractional,
            teacher=teacher,
            tuned_from=tuned_from,
        )
    except ValidationError as problem:
        first = problem.errors()[0]
        raise FvitError(
            f"a bundle cannot hold this model: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from problem
    feeds = []
    if kind == "int8":
        pixels = calibration_images(calibration, size=size)
        feeds = denoiser_feeds(pixels, denoiser.schedule, rows=ROWS)
    draw = torch.Generator().manual_seed(0)
    noisy = noisy_example(denoiser.schedule, size=size, draw=draw)
    # A graph with a backward pass keeps this batch.
    images = {"images": torch.rand(ROWS, 3, *explaining.size, generator=draw)}
    half = kind == "fp16"
    with write_bundle(folder) as temporary:
        graphs = {name: temporary / name for name in (DENOISER, CLASSIFIER)}
        on_progress(f"exporting {denoiser_name}")
        error = export_graph(one_shot, noisy, outputs=("images",), graph=graphs[DENOISER], half=half)
        report = {DENOISER: Exported(error)}
        on_progress(f"exporting {classifier_name}")
        error = export_graph(
            explaining,
            images,
            outputs=("logits", "attribution"),
            graph=graphs[CLASSIFIER],
            backward=explaining.needs_gradients,
            half=half,
        )
        report[CLASSIFIER] = Exported(error)
        if kind == "int8":
            on_progress("calibrating int8")
            quantise_graphs(temporary, report, feeds, graphs=tuple(graphs), on_progress=on_progress)
        seal(temporary, manifest)
    return report


def quantise_graphs(
    folder: Path,
    report: dict[str, Exported],
    feeds: list[Feeds],
    *,
    graphs: Sequence[str],
    on_progress: Callable[[str], Any] = lambda what: None,
) -> None:
    """Make these of a folder's two graphs int8 where they lie, calibrated on the denoiser's feeds and on what
    it makes of them; what that costs goes into the report."""
    inputs = {DENOISER: feeds, CLASSIFIER: classifier_feeds(folder / DENOISER, feeds)}
    for name in graphs:
        cost = quantise(folder / name, inputs[name], on_layer=partial(_layer, on_progress, name))
        report[name] = dataclasses.replace(report.get(name, Exported(0.0)), int8=cost)


def noisy_example(
    schedule: Schedule, *, size: tuple[int, int], draw: torch.Generator
) -> dict[str, torch.Tensor]:
    """Inputs of a denoiser graph, every row with a level of its own."""
    levels = np.clip([0.25, 0.5], schedule.sigmas[0], schedule.sigmas[-1])
    sigma, timestep = (
        torch.tensor(each, dtype=torch.float32) for each in (levels, schedule.timestep(levels))
    )
    noise = torch.randn(len(levels), 3, *size, generator=draw)
    return {"noisy": 0.5 + sigma[:, None, None, None] * noise, "sigma": sigma, "timestep": timestep}


def _layer(on_progress: Callable[[str], Any], graph: str, done: int, of: int) -> None:
    on_progress(f"{graph}: what int8 costs, layer {done} of {of}")
