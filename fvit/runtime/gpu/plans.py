"""A bundle's networks on a GPU: TensorRT plans that were built for it, or ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fvit.engines.base import Engine, weights_file
from fvit.engines.opening import open_engine
from fvit.engines.tensorrt import (
    PlanKey,
    TensorRTEngine,
    build_plan,
    find_plan,
    plan_key,
    planned_batches,
)
from fvit.errors import FvitError
from fvit.runtime.bundle import Bundle
from fvit.runtime.gpu.device import Gpu


def open_engines(bundle: Bundle, gpu: Gpu, *, device: str, batch: int | None) -> tuple[Engine, Engine]:
    """The bundle's denoiser and classifier on this GPU and its stream.

    device: "tensorrt:N" for the plans that were built for it and this batch; "ort-tensorrt:N" or "cuda:N",
    without a batch, for ONNX Runtime. Raises FvitError where there is no such plan or it cannot be used.
    """

    precision = bundle.manifest.precision

    def opened(graph: Path) -> Engine:
        if batch is None:
            return open_engine(graph, device=device, precision=precision, stream=gpu.stream)
        plan = find_plan(bundle.folder, graph, _key(bundle, graph, gpu, batch=batch))
        return TensorRTEngine(plan, device=device, precision=precision, gpu=gpu, stream=gpu.stream)

    with gpu:
        return opened(bundle.denoiser), opened(bundle.classifier)


def build_plans(
    bundle: Bundle,
    gpu: Gpu,
    *,
    batch: int,
    workspace: int,
    verbose: bool = False,
    on_build: Callable[[str], Any] = lambda name: None,
) -> list[Path]:
    """The bundle's TensorRT plans for this GPU and batch; what is missing is built.

    Precision is the bundle's. workspace: bytes that a layer may use. on_build is called with a plan's name
    before it is built. Raises FvitError where one cannot be built.
    """
    plans = []
    for graph in (bundle.denoiser, bundle.classifier):
        key = _key(bundle, graph, gpu, batch=batch)
        plan = key.file(bundle.folder, graph)
        if not plan.is_file():
            on_build(plan.name)
            with gpu:
                build_plan(bundle.folder, graph, key, workspace=workspace, verbose=verbose)
        plans.append(plan)
    return plans


def largest_batch(bundle: Bundle, gpu: Gpu) -> int:
    """The largest batch for which both graphs have plans here. Raises FvitError where none has."""
    one, other = (
        planned_batches(bundle.folder, graph, _key(bundle, graph, gpu, batch=0))
        for graph in (bundle.denoiser, bundle.classifier)
    )
    if not (both := one & other):
        raise FvitError(
            f"{bundle.folder} has no TensorRT plans for {gpu.name}: build them with  "
            f"fvit-export engine {bundle.folder}"
        )
    return max(both)


def _key(bundle: Bundle, graph: Path, gpu: Gpu, *, batch: int) -> PlanKey:
    """What a plan of this graph must be built for to run here."""
    # The manifest's hashes were verified when the bundle was opened; weights may lie beside a graph.
    files = bundle.manifest.files
    parts = (files.get(file.name, "") for file in (graph, weights_file(graph)))
    return plan_key(
        gpu=gpu.name,
        capability=gpu.capability,
        precision=bundle.manifest.precision,
        batch=batch,
        graph=hashlib.sha256("".join(parts).encode()).hexdigest(),
    )
