"""Putting a bundle on a device: the CPU, one GPU or several."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from fvit.certificates.tally import Tally
from fvit.engines.base import Engine
from fvit.engines.opening import open_engine
from fvit.errors import FvitError, OutOfMemory
from fvit.runtime.batching import fastest_batch, remembered, time_of_copy
from fvit.runtime.bundle import Bundle, open_bundle
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.gpu.counter import Device, DeviceSmoother
from fvit.runtime.gpu.kernels import cache_folder
from fvit.runtime.host import CopyCounter, DenoisedClassifier, Section, Smoother
from fvit.runtime.schedule import Schedule
from fvit.runtime.several import SharedSmoother

ON_GPU = ("tensorrt", "ort-tensorrt", "cuda")
"""What runs graphs on a GPU, in the order that "auto" tries."""

Batch = int | Literal["auto"]

BATCH = 32
"""Copies a run of the engine takes unless told."""


def load(bundle: str | os.PathLike[str], *, device: str = "cpu", batch: Batch | None = None) -> FaithfulViT:
    """Open and verify a bundle and put its graphs on a device.

    device: "cpu"; "tensorrt:N", the plans that were built for GPU N; "ort-tensorrt:N" or "cuda:N", ONNX
    Runtime's TensorRT or CUDA provider there; "cuda:0,1" and the like, several GPUs that share the copies;
    or "auto", the first of tensorrt:0, ort-tensorrt:0, cuda:0 and cpu that works (the result's
    `passed_over` says why not the others). batch: copies a run of the engine takes: 32 unless told, and
    "auto" measures which is the fastest, once; on "tensorrt:N" both take the largest that has plans. Raises
    FvitError where the bundle is missing or damaged, or the device cannot be used.
    """
    opened = open_bundle(bundle)
    passed_over: list[str] = []
    for choice in [f"{kind}:0" for kind in ON_GPU] if device == "auto" else []:
        try:
            vit = _on(opened, device=choice, batch=batch)
            break
        except FvitError as reason:
            passed_over.append(f"{choice}: {reason}")
    else:
        vit = _on(opened, device="cpu" if device == "auto" else device, batch=batch)
    vit.passed_over = tuple(passed_over)
    return vit


@dataclass(frozen=True)
class Place:
    """Where a bundle runs: hardware, by name, what counts copies there at a given batch, and the batch
    that its plans were built for (None where any will do)."""

    hardware: str
    pipeline: DenoisedClassifier
    counter: Callable[[int], CopyCounter]
    planned: int | None = None


def _on(bundle: Bundle, *, device: str, batch: Batch | None) -> FaithfulViT:
    place = _on_cpu(bundle) if device == "cpu" else _on_gpus(bundle, device=device, batch=batch)
    if not isinstance(batch, int):
        batch = place.planned or (BATCH if batch is None else _fastest(bundle, place, device=device))
    return FaithfulViT(bundle, place.pipeline, device=device, batch=batch, smoother=place.counter)


def _on_cpu(bundle: Bundle) -> Place:
    pipeline = _pipeline(
        bundle, *(open_engine(g, device="cpu") for g in (bundle.denoiser, bundle.classifier))
    )
    hardware = f"{platform.processor() or platform.machine()} {len(os.sched_getaffinity(0))} cores"
    return Place(hardware, pipeline, lambda batch: Smoother(pipeline, batch=batch))


def _on_gpus(bundle: Bundle, *, device: str, batch: Batch | None) -> Place:
    kind, _, numbers = device.partition(":")
    indices = numbers.split(",")
    if kind not in ON_GPU or not all(map(str.isdecimal, indices)) or len(set(indices)) < len(indices):
        raise FvitError(
            f"unknown device '{device}': use cpu, auto, or tensorrt:0, ort-tensorrt:0 or cuda:0 for the "
            "first GPU, cuda:0,1 for the first two"
        )
    from fvit.runtime.gpu.device import Gpu

    gpus = [Gpu(int(index)) for index in indices]
    planned = None
    if kind == "tensorrt":
        planned = batch if isinstance(batch, int) else min(gpu.largest_batch(bundle) for gpu in gpus)
    engines = [
        gpu.engines(bundle, device=f"{kind}:{index}", batch=planned)
        for gpu, index in zip(gpus, indices, strict=True)
    ]
    schedule = bundle.manifest.schedule
    counters = [partial(_on_device, gpu, *pair, schedule) for gpu, pair in zip(gpus, engines, strict=True)]

    def shared(size: int) -> SharedSmoother:
        return SharedSmoother([make(size) for make in counters])

    counter = counters[0] if len(gpus) == 1 else shared
    return Place(gpus[0].name, _pipeline(bundle, *engines[0]), counter, planned)


def _fastest(bundle: Bundle, place: Place, *, device: str) -> int:
    """The batch measured to be the fastest here, or what was found earlier."""
    pixels = np.full((3, *bundle.manifest.image_size), 0.5, np.float32)

    def seconds(size: int) -> float:
        counter = place.counter(size)

        def run(copies: int) -> None:
            tally = Tally(place.pipeline.classes, place.pipeline.tokens, (1,))
            for _ in counter.run([Section(pixels, range(copies), tally)], sigma=0.25, seed=0):
                pass

        taken = time_of_copy(run, size)
        if counter.rows < size:
            raise OutOfMemory(f"{device} has no memory for {size} copies at once")
        return taken

    key = f"{bundle.digest} {device} {place.pipeline.engine} {place.hardware}"
    return remembered(cache_folder() / "batches.json", key, lambda: fastest_batch(seconds))


def _pipeline(bundle: Bundle, denoiser: Engine, classifier: Engine) -> DenoisedClassifier:
    manifest = bundle.manifest
    return DenoisedClassifier(
        denoiser, classifier, schedule=manifest.schedule, image_size=manifest.image_size
    )


def _on_device(
    device: Device, denoiser: Engine, classifier: Engine, schedule: Schedule, batch: int
) -> DeviceSmoother:
    return DeviceSmoother(device, denoiser, classifier, schedule=schedule, batch=batch)
