"""One NVIDIA GPU: memory, and the kernels of kernels.cu, through PyCUDA in the primary context, so that
ONNX Runtime, TensorRT and torch may live beside it in one process."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fvit.engines.base import Engine, Memory, open_engine, weights_file
from fvit.engines.tensorrt import (
    PlanKey,
    TensorRTEngine,
    build_plan,
    find_plan,
    plan_key,
    planned_batches,
)
from fvit.errors import FvitError, OutOfMemory
from fvit.extras import require
from fvit.runtime.bundle import Bundle
from fvit.runtime.gpu.counter import Accumulators
from fvit.runtime.gpu.graph import CudaGraph
from fvit.runtime.gpu.kernels import cache_folder, compiled

KERNELS = {
    "draw_copies": ("PPfQQI", (128, 1, 1)),
    "count_classes": ("PIIPP", (128, 1, 1)),
    "count_votes": ("PIPIPP", (128, 1, 1)),
    "add_attributions": ("PIIPPPP", (32, 32, 1)),
}
"""The types of each kernel's arguments, as struct spells them, and the shape of its blocks."""


def geometry(kernel: str, columns: int, rows: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """The grid and the blocks that cover so many columns, and each row in blocks of its own."""
    _, block = KERNELS[kernel]
    return (-(-columns // block[0]), rows), block


class Allocation:
    """Frees memory in its GPU's context, whichever thread drops it last: PyCUDA by itself frees only in the
    thread that opened the context, and leaks elsewhere."""

    def __init__(self, gpu: Gpu, held: Any) -> None:
        weakref.finalize(self, _free, gpu, held).atexit = False  # the driver frees all when a process ends


def _free(gpu: Gpu, held: Any) -> None:
    with gpu:
        held.free()


class Gpu:
    """A device for DeviceSmoother; everything happens on one stream.

    Raises FvitError where there is no such GPU or its kernels cannot be compiled.
    """

    def __init__(self, index: int) -> None:
        self._driver = require("pycuda.driver", extra=None, purpose="running on a GPU")
        try:
            self._driver.init()
            count = self._driver.Device.count()
        except self._driver.Error as error:
            raise FvitError(f"no GPU can be used: {error}") from error
        if index >= count:
            raise FvitError(f"device cuda:{index}: this machine has {count} GPUs, counted from 0")
        device = self._driver.Device(index)
        self._context = device.retain_primary_context()
        self.name: str = device.name()
        self.capability: tuple[int, int] = device.compute_capability()
        with self:
            cubin = compiled("sm_{}{}".format(*self.capability), cache=cache_folder())
            module = self._driver.module_from_file(str(cubin))
            self._stream = self._driver.Stream()
            self._kernels = {name: module.get_function(name) for name in KERNELS}
            for name, (arguments, _) in KERNELS.items():
                self._kernels[name].prepare(arguments)

    def __enter__(self) -> None:
        self._context.push()

    def __exit__(self, *_: object) -> None:
        self._driver.Context.pop()

    @property
    def stream(self) -> int:
        """The address of the stream, for engines that work on it."""
        return int(self._stream.handle)

    def engines(self, bundle: Bundle, *, device: str, batch: int | None) -> tuple[Engine, Engine]:
        """The bundle's denoiser and classifier on this GPU and its stream: "tensorrt:N" takes the plans
        that were built for it and this batch, "ort-tensorrt:N" and "cuda:N" ONNX Runtime."""

        def opened(graph: Path) -> Engine:
            if batch is None:
                precision = bundle.manifest.precision
                return open_engine(graph, device=device, precision=precision, stream=self.stream)
            plan = find_plan(bundle.folder, graph, self.plan_key(graph, bundle, batch=batch))
            return TensorRTEngine(plan, device=device, gpu=self, stream=self.stream)

        with self:
            return opened(bundle.denoiser), opened(bundle.classifier)

    def build_plans(
        self,
        bundle: Bundle,
        *,
        batch: int,
        workspace: int,
        verbose: bool = False,
        on_build: Callable[[str], Any] = lambda name: None,
    ) -> list[Path]:
        """The bundle's TensorRT plans for this GPU and batch; what is missing is built, in the bundle's
        precision. workspace: bytes that a layer may use. on_build is called with a plan's name before it is
        built. Raises FvitError where one cannot be built."""
        plans = []
        for graph in (bundle.denoiser, bundle.classifier):
            key = self.plan_key(graph, bundle, batch=batch)
            plan = key.file(bundle.folder, graph)
            if not plan.is_file():
                on_build(plan.name)
                with self:
                    build_plan(bundle.folder, graph, key, workspace=workspace, verbose=verbose)
            plans.append(plan)
        return plans

    def largest_batch(self, bundle: Bundle) -> int:
        """The largest batch for which both graphs have plans here. Raises FvitError where none has."""
        graphs = (bundle.denoiser, bundle.classifier)
        found = [
            planned_batches(bundle.folder, graph, self.plan_key(graph, bundle, batch=0)) for graph in graphs
        ]
        if not (both := found[0] & found[1]):
            raise FvitError(
                f"{bundle.folder} has no TensorRT plans for {self.name}: build them with  "
                f"fvit-export engine {bundle.folder}"
            )
        return max(both)

    def plan_key(self, graph: Path, bundle: Bundle, *, batch: int) -> PlanKey:
        """What a plan of this graph must be built for to run here."""
        # The manifest's hashes were verified when the bundle was opened; weights may lie beside a graph.
        files = bundle.manifest.files
        parts = (files.get(file.name, "") for file in (graph, weights_file(graph)))
        return plan_key(
            gpu=self.name,
            capability=self.capability,
            precision=bundle.manifest.precision,
            batch=batch,
            graph=hashlib.sha256("".join(parts).encode()).hexdigest(),
        )

    def free_bytes(self) -> int:
        """Memory that nobody on this GPU holds."""
        with self:
            free, _ = self._driver.mem_get_info()
        return int(free)

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Memory:
        kind = np.dtype(dtype)
        with self:
            # An empty array still needs an address.
            size = max(1, kind.itemsize * int(np.prod(shape)))
            try:
                held = self._driver.mem_alloc(size)
            except self._driver.MemoryError as error:
                raise OutOfMemory(f"{self.name} has no {size / 1e6:,.0f} MB left") from error
        return Memory(int(held), shape, kind, Allocation(self, held))

    def upload(self, memory: Memory, values: NDArray[Any]) -> None:
        if values.size:
            with self:
                host = np.ascontiguousarray(values, memory.dtype)
                self._driver.memcpy_htod_async(memory.pointer, host, self._stream)
                self._stream.synchronize()

    def download(self, memory: Memory) -> NDArray[Any]:
        values: NDArray[Any] = np.empty(memory.shape, memory.dtype)
        if values.size:
            with self:
                self._driver.memcpy_dtoh_async(values, memory.pointer, self._stream)
                self._stream.synchronize()
        return values

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        with self:
            work()  # what an engine sets up on its first run cannot be captured
            self._stream.synchronize()
            try:
                graph = CudaGraph(work, stream=self.stream)
            except OutOfMemory:
                raise
            except FvitError:
                return work
        return partial(self._launch_graph, graph)

    def _launch_graph(self, graph: CudaGraph) -> None:
        with self:
            graph.launch()

    def draw(
        self, noisy: Memory, *, row: int, pixels: Memory, copies: range, sigma: float, seed: int
    ) -> None:
        size = int(np.prod(pixels.shape))
        target = noisy.rows(range(row, row + len(copies)))
        self._launch(
            "draw_copies", -(-size // 4), len(copies),
            target.pointer, pixels.pointer, sigma, seed, copies.start, size,
        )  # fmt: skip

    def reduce(self, logits: Memory, attribution: Memory, *, rows: range, into: Accumulators) -> None:
        classes, tokens = logits.shape[1], attribution.shape[1]
        scores, shares = logits.rows(rows).pointer, attribution.rows(rows).pointer
        unfit = into.unfit.pointer
        self._launch("count_classes", len(rows), 1, scores, len(rows), classes, into.counts.pointer, unfit)
        self._launch(
            "count_votes", tokens, len(rows),
            shares, tokens, into.sizes.pointer, into.sizes.shape[0], into.votes.pointer, unfit,
        )  # fmt: skip
        self._launch(
            "add_attributions", tokens, 1 + into.bets.shape[0],
            shares, len(rows), tokens, into.sums.pointer, into.squares.pointer, into.bets.pointer,
            into.wealth.pointer,
        )  # fmt: skip

    def _launch(self, kernel: str, columns: int, rows: int, *arguments: object) -> None:
        grid, block = geometry(kernel, columns, rows)
        with self:
            self._kernels[kernel].prepared_async_call(grid, block, self._stream, *arguments)
