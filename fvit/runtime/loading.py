"""Putting a bundle on a device: the CPU, one GPU or several."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from fvit.certificates.tally import Tally
from fvit.engines import processor
from fvit.engines.base import GPU_NUMBER, Engine
from fvit.engines.opening import open_engine
from fvit.errors import FvitError, OutOfMemory
from fvit.extras import require
from fvit.runtime.batching import code, fastest_batch, remembered, time_of_copy
from fvit.runtime.bundle import Bundle, check_graphs, check_precision, open_bundle
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.gpu.kernels import cache_folder
from fvit.runtime.host import DenoisedClassifier, HostCounter
from fvit.runtime.images import read_image
from fvit.runtime.queue import Counter, Queue, Stretch

ON_GPU = ("tensorrt", "ort-tensorrt", "cuda")
"""What runs graphs on a GPU, in the order that "auto" tries."""

ON_CPU = ("openvino", "cpu")
"""What runs them on the CPU; "cpu" is ONNX Runtime's."""

Batch = int | Literal["auto"]

FAR, PROBED = 0.1, 16
"""How far results of two engines may differ before "auto" passes the faster one over, on so many copies: a
back end of int8 that is wrong costs certificates half of their radius, and nobody an error."""

ON_CORE = 4
"""Copies that a CPU core takes at once unless told: a short request then waits for few others, and what
Python does for a batch is still small beside it."""

MOST_CORES = 1024
"""More than any machine has: each is a thread."""

BATCH = 64
"""Copies that a GPU takes at once unless told."""

BYTES_OF_COPY, BYTES_OF_IMAGE = 10, 8
"""Of a value of a copy, and of the image that it is denoised to, while a CPU core works on its batch."""

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a control group's limit of memory is to be read, in version 2 and 1."""


def load(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    device: str = "cpu",
    batch: Batch | None = None,
    cores: int | None = None,
) -> FaithfulViT:
    """Open and verify a bundle, unless it is one that was opened, and put its graphs on a device.

    bundle: its folder, or "demo", the embedded one. device: "cpu"; "openvino", the CPU by OpenVINO;
    "tensorrt:N", the plans that were built for GPU N; "ort-tensorrt:N" or "cuda:N", ONNX Runtime's TensorRT
    or CUDA provider there; "cuda:0,1" and the like, several GPUs that share all copies; or "auto", the first
    of tensorrt:0, ort-tensorrt:0 and cuda:0 that works, or else the faster of openvino and cpu, which is
    measured once (the result's `passed_over` says why not the others). batch: copies that a CPU core or a GPU
    takes at once: 4 (by OpenVINO 8) and 64 unless told, and "auto" measures which is the fastest, once; on
    "tensorrt:N" both take the largest that has plans. cores: of a CPU, so many; all that this process may use
    unless told.
    Raises FvitError where the bundle is missing or damaged, the device cannot be used, or batch or cores is
    no number from 1 on, or cores more than MOST_CORES.
    """
    if not isinstance(device, str):
        raise FvitError(f"device = {device!r}: give its name, such as cpu")
    if cores is not None and not (isinstance(cores, int | np.integer) and 1 <= cores <= MOST_CORES):
        raise FvitError(f"cores = {cores!r}: give a number of CPU cores from 1 to {MOST_CORES:,}")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    passed_over: list[str] = []
    for choice in [f"{kind}:0" for kind in ON_GPU] if device == "auto" else []:
        try:
            vit = _on(opened, device=choice, batch=batch, cores=cores)
            break
        except FvitError as reason:
            passed_over.append(f"{choice}: {reason}")
    else:
        if device == "auto":
            device, slower = _faster_on_cpu(opened, cores=cores or _available())
            passed_over.append(slower)
        vit = _on(opened, device=device, batch=batch, cores=cores)
    vit.passed_over = tuple(passed_over)
    return vit


@dataclass(frozen=True)
class Place:
    """Where a bundle runs: its hardware by name, the pipeline there, what makes its devices for a batch, the
    batch unless told."""

    hardware: str
    pipeline: DenoisedClassifier
    counters: Callable[[int], Sequence[Counter]]
    batch: int


def _on(bundle: Bundle, *, device: str, batch: Batch | None, cores: int | None) -> FaithfulViT:
    if isinstance(batch, np.integer):
        batch = int(batch)
    if not (batch is None or (isinstance(batch, str) and batch == "auto")) and not (
        isinstance(batch, int) and batch >= 1
    ):
        raise FvitError(f"batch = {batch!r}: give a number of copies from 1 on, or auto")
    if device in ON_CPU:
        place = _on_cpu(bundle, device=device, cores=cores or _available())
    else:
        place = _on_gpus(bundle, device=device, batch=batch)
    rows = place.batch if batch is None else batch
    if rows == "auto":
        rows = place.batch if device.startswith("tensorrt") else _fastest(bundle, place, device=device)
    return FaithfulViT(bundle, place.pipeline, place.counters(rows), device=device)


def _cores(count: int) -> str:
    """So many cores of this processor, as what is measured on them is remembered: on one that multiplies int8
    in another way, the faster engine may be another, or wrong."""
    return f"{processor.name()} ({processor.instructions()}) {count} cores"


def _available() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _faster_on_cpu(bundle: Bundle, *, cores: int) -> tuple[str, str]:
    """The device of the faster engine on the CPU, measured here or earlier, and why not the other one."""
    try:
        require("openvino", extra="openvino", purpose="device openvino")
    except FvitError as reason:
        return "cpu", f"openvino: {reason}"

    def faster() -> str:
        try:
            places = {device: _on_cpu(bundle, device=device, cores=cores) for device in ON_CPU}
            apart = _apart(bundle, places["openvino"].pipeline, places["cpu"].pipeline)
            if not apart <= FAR:
                return f"openvino: its results are {apart:.0%} off those of ONNX Runtime"
            return min(ON_CPU, key=lambda device: _seconds(bundle, places[device], ON_CORE))
        except (FvitError, RuntimeError) as reason:  # OpenVINO's own errors are RuntimeErrors
            raise _Unmeasured(str(reason)) from reason

    versions = " ".join(f"{name} {version(name)}" for name in ("onnxruntime", "openvino"))
    key = f"{bundle.digest} {_cores(cores)} {versions} {code()}"
    otherwise = "give --device cpu or openvino"
    try:
        found = remembered(cache_folder() / "engines.json", key, faster, kind=str, otherwise=otherwise)
    except _Unmeasured as reason:  # which may be gone next time
        return "cpu", f"openvino: {reason}"
    if found not in ON_CPU:
        return "cpu", found
    return found, f"{next(each for each in ON_CPU if each != found)}: slower than {found} here"


class _Unmeasured(Exception):
    """Why the engines could not be measured."""


def _apart(bundle: Bundle, one: DenoisedClassifier, other: DenoisedClassifier) -> float:
    """How far what two engines make of the same noisy copies differs at the most, in any output: the root
    mean square of the difference, relative to the second one's spread."""
    draw, (rows, columns) = np.random.default_rng(0), bundle.manifest.image_size
    patches = draw.random((PROBED, 3, 8, 8))
    images = patches.repeat(-(-rows // 8), axis=2).repeat(-(-columns // 8), axis=3)[:, :, :rows, :columns]
    sigma = np.full(PROBED, _level(bundle), np.float32)
    noise = sigma[:, None, None, None] * draw.standard_normal(images.shape)
    noisy = (images + noise).astype(np.float32)
    denoised = [pipeline.denoise(noisy, sigma=sigma) for pipeline in (one, other)]
    outputs = [pipeline.classify(denoised[1]) for pipeline in (one, other)]
    pairs = [denoised, *zip(*outputs, strict=True)]
    # A result that is no number makes NumPy's maximum none, and Python's whatever comes first.
    return float(np.max([np.sqrt(np.mean((a - b) ** 2)) / (b.std() + 1e-12) for a, b in pairs]))


def _on_cpu(bundle: Bundle, *, device: str, cores: int) -> Place:
    precision = bundle.manifest.precision
    engines = [
        open_engine(graph, device=device, precision=precision, threads=1, callers=cores)
        for graph in (bundle.denoiser, bundle.classifier)
    ]
    pipeline = _pipeline(bundle, *engines)

    # Rows that would be filled up may as well be other copies.
    grain = math.lcm(*(engine.portion or 1 for engine in engines))

    def counters(rows: int) -> list[HostCounter]:
        rows = _fitting(bundle, rows=rows, cores=cores, grain=grain)
        return [HostCounter(pipeline, rows=rows, grain=grain) for _ in range(cores)]

    return Place(_cores(cores), pipeline, counters, ON_CORE)


def _fitting(bundle: Bundle, *, rows: int, cores: int, grain: int) -> int:
    """So many rows on each core, made up to whole grains; raises OutOfMemory where they do not fit in what is
    free now."""
    whole = -(-rows // grain) * grain
    sizes = (bundle.manifest.image_size, bundle.manifest.classifier_size)
    copy, image = (3 * math.prod(size) for size in sizes)
    a_row = cores * (BYTES_OF_COPY * copy + BYTES_OF_IMAGE * image)
    free = _free_memory()
    if whole * a_row > free:
        most = int(free // a_row) // grain * grain
        raise OutOfMemory(
            f"batch = {rows}: so many copies on each of {cores} cores take {whole * a_row / 1e9:,.1f} GB, "
            f"and {free / 1e9:,.1f} GB are free: use {f'at most {most}' if most else 'fewer cores'}"
        )
    return whole


def _free_memory() -> float:
    """The bytes that the machine has left, or all that the process's control group may have where those are
    fewer: a batch beyond them is hopeless, one within may still be too large."""
    limits = [math.inf]
    if found := re.search(r"MemAvailable: +(\d+) kB", _said(Path("/proc/meminfo"))):
        limits.append(1024 * int(found[1]))
    limits += [int(said) for said in map(_said, LIMITS) if said.strip().isdecimal()]
    return min(limits)


def _said(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _on_gpus(bundle: Bundle, *, device: str, batch: Batch | None) -> Place:
    kind, _, numbers = device.partition(":")
    indices = numbers.split(",")
    if kind not in ON_GPU or not all(map(GPU_NUMBER.fullmatch, indices)) or len(set(indices)) < len(indices):
        raise FvitError(
            f"unknown device {device!r}: use cpu, openvino or auto, tensorrt:0, ort-tensorrt:0 or cuda:0 "
            "for the first GPU, cuda:0,1 for the first two"
        )
    from fvit.runtime.gpu.counter import DeviceCounter
    from fvit.runtime.gpu.device import Gpu
    from fvit.runtime.gpu.plans import largest_batch, open_engines

    gpus = [Gpu(int(index)) for index in indices]
    planned = None
    if kind == "tensorrt":
        planned = batch if isinstance(batch, int) else min(largest_batch(bundle, gpu) for gpu in gpus)
    engines = [
        open_engines(bundle, gpu, device=f"{kind}:{index}", batch=planned)
        for gpu, index in zip(gpus, indices, strict=True)
    ]
    schedule = bundle.manifest.schedule

    def counters(rows: int) -> list[DeviceCounter]:
        return [
            DeviceCounter(gpu, *pair, schedule=schedule, rows=rows)
            for gpu, pair in zip(gpus, engines, strict=True)
        ]

    return Place(gpus[0].name, _pipeline(bundle, *engines[0]), counters, planned or BATCH)


def _fastest(bundle: Bundle, place: Place, *, device: str) -> int:
    """The batch measured to be the fastest here, or what was found earlier."""
    key = f"{bundle.digest} {device} {place.pipeline.engine} {place.hardware} {code()}"
    return remembered(
        cache_folder() / "batches.json", key,
        lambda: fastest_batch(lambda rows: _seconds(bundle, place, rows)), kind=int,
        otherwise="give --batch a number",
    )  # fmt: skip


def _seconds(bundle: Bundle, place: Place, rows: int) -> float:
    """The time of one copy, with so many rows on each device."""
    size = bundle.manifest.image_size
    sigma = _level(bundle)
    picture = read_image(np.full((*size, 3), 128, np.uint8), size=size)
    counters = place.counters(rows)
    queue = Queue(counters)

    def run(copies: int) -> None:
        tally = Tally(place.pipeline.classes, place.pipeline.tokens, (1,))
        queue.submit(Stretch(picture, range(copies), sigma=sigma, key=0, tally=tally)).result()

    try:
        taken = time_of_copy(run, rows * len(counters))
        if any(counter.rows < rows for counter in counters):
            raise OutOfMemory(f"{place.hardware} has no memory for {rows} copies at once")
    finally:
        queue.close()
    return taken


def _level(bundle: Bundle) -> float:
    """The σ that is measured at: 0.25, or the nearest that the denoiser knows."""
    return float(np.clip(0.25, *bundle.manifest.schedule.sigmas[[0, -1]]))


def _pipeline(bundle: Bundle, denoiser: Engine, classifier: Engine) -> DenoisedClassifier:
    check_graphs(bundle, denoiser=denoiser, classifier=classifier)
    check_precision(bundle)
    manifest = bundle.manifest
    return DenoisedClassifier(
        denoiser, classifier, schedule=manifest.schedule, image_size=manifest.image_size
    )
