"""One NVIDIA GPU: memory, and the kernels of kernels.cu, through PyCUDA in the primary context, so that
ONNX Runtime, TensorRT and torch may live beside it in one process."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fvit.engines.base import Engine, Memory, open_engine, weights_file
from fvit.engines.tensorrt import PlanKey, TensorRTEngine, find_plan, plan_key
from fvit.errors import FvitError
from fvit.extras import require
from fvit.runtime.bundle import Bundle
from fvit.runtime.device import Accumulators
from fvit.runtime.kernels import cache_folder, compiled

THREADS = 128


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
            self._kernels = {}
            for name, arguments in (
                ("draw_copies", "PPfQQI"),
                ("count_classes", "PIIPP"),
                ("count_votes", "PIPIPP"),
                ("add_attributions", "PIIPPPP"),
            ):
                self._kernels[name] = module.get_function(name)
                self._kernels[name].prepare(arguments)

    def __enter__(self) -> None:
        self._context.push()

    def __exit__(self, *_: object) -> None:
        self._driver.Context.pop()

    @property
    def stream(self) -> int:
        """The address of the stream, for engines that work on it."""
        return int(self._stream.handle)

    def engines(self, bundle: Bundle, *, device: str, batch: int) -> tuple[Engine, Engine]:
        """The bundle's denoiser and classifier on this GPU and its stream: "tensorrt:N" takes the plans
        that were built for it, "cuda:N" ONNX Runtime."""
        denoiser, classifier = bundle.denoiser, bundle.classifier
        with self:
            if device.startswith("cuda"):
                return (
                    open_engine(denoiser, device=device, stream=self.stream),
                    open_engine(classifier, device=device, stream=self.stream),
                )
            plans = [
                find_plan(bundle.folder, graph, self.plan_key(graph, bundle, batch=batch))
                for graph in (denoiser, classifier)
            ]
            return (
                TensorRTEngine(plans[0], device=device, stream=self.stream),
                TensorRTEngine(plans[1], device=device, stream=self.stream),
            )

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

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Memory:
        kind = np.dtype(dtype)
        with self:
            # An empty array still needs an address.
            owner = self._driver.mem_alloc(max(1, kind.itemsize * int(np.prod(shape))))
        return Memory(int(owner), shape, kind, owner)

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
        grid = (-(-columns // THREADS), rows)
        with self:
            self._kernels[kernel].prepared_async_call(grid, (THREADS, 1, 1), self._stream, *arguments)
