"""ONNX Runtime: the CPU, and where onnxruntime-gpu is installed its CUDA and TensorRT providers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvit.engines import processor
from fvit.engines.base import GPU_NUMBER, PLANS, Engine, Memory, Tensor
from fvit.engines.portions import Arrays, in_portions
from fvit.errors import FvitError, OutOfMemory
from fvit.extras import require

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}

NO_MEMORY = re.compile(r"out of memory|failed to allocate|ALLOC_FAILED", re.IGNORECASE)

ROWS = 2
"""Rows of a batch that one CPU core works on at a time. Cores that each run their own rows were 45 % faster
than cores that share every operator (on two cores with the demo bundle), two rows at a time were as fast as
eight to 2 %, and a fixed number, to which odd ends are filled, keeps a copy's result independent of how many
cores there are and of the batch: of a single row some products are computed in another order."""


class OnnxRuntimeEngine(Engine):
    """One ONNX graph in an onnxruntime session.

    threads: CPU cores that share the rows of one run; all unless told. With one, rows are computed by
    whichever thread calls, and several may call at once. Raises FvitError where the device is unknown, no
    provider for it is installed or can be loaded, or the graph cannot be read.
    """

    name = "onnxruntime"

    def __init__(
        self,
        graph: Path,
        *,
        device: str,
        precision: str = "fp32",
        stream: int | None = None,
        threads: int | None = None,
    ) -> None:
        runtime = require("onnxruntime", extra=None, purpose="running a bundle")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        self._cores: ThreadPoolExecutor | None = None
        if device == "cpu":
            options.intra_op_num_threads = 1
            # Processors with AVX2 and no VNNI add products of int8 in 16 bits, which overflow unless ONNX
            # Runtime is told of it; told where that is not needed, the denoiser takes 1.5 times as long.
            if not processor.has("vnni"):
                options.add_session_config_entry("session.x64quantprecision", "1")
            if (cores := threads or len(os.sched_getaffinity(0))) > 1:
                self._cores = ThreadPoolExecutor(cores, thread_name_prefix="fvit-cpu")
        providers = _providers(runtime, graph, device=device, precision=precision, stream=stream)
        try:
            self._session = runtime.InferenceSession(graph, options, providers=providers)
        except Exception as error:  # ONNX Runtime's own types, one for each cause
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FvitError(f"{graph} cannot be opened by ONNX Runtime: {first}; export it again") from error
        wanted, served = providers[0][0], self._session.get_providers()
        if wanted not in served:  # ONNX Runtime goes on without a provider whose libraries are missing
            raise FvitError(
                f"device {device}: ONNX Runtime cannot load its {wanted}; what it lacks is printed above"
            )
        self.device, self.precision = device, precision
        self.inputs = tuple(map(_tensor, self._session.get_inputs()))
        self.outputs = tuple(map(_tensor, self._session.get_outputs()))
        self._names = [tensor.name for tensor in self.outputs]
        self._fixed = next((tensor.shape[0] for tensor in self.inputs if tensor.shape), None)
        self.portion = self._fixed or (ROWS if device == "cpu" else None)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        def call(rows: dict[str, NDArray[Any]]) -> Arrays:
            with _memory_told(self.device):
                found: Arrays = self._session.run(self._names, rows)
            return found

        found = in_portions(call, feeds, portion=self.portion, cores=self._cores)
        return dict(zip(self._names, found, strict=True))

    def bind(self, memory: Mapping[str, Memory]) -> Callable[[], None]:
        rows = memory[self.inputs[0].name].shape[0]
        portion = self._fixed or rows
        kind, _, index = self.device.rpartition(":")
        there, number = ("cuda", int(index)) if kind else ("cpu", 0)
        bindings = []
        for first in range(0, rows, portion):
            binding = self._session.io_binding()
            for tensors, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
                for tensor in tensors:
                    part = memory[tensor.name].rows(range(first, first + portion))
                    bind(
                        tensor.name,
                        there,
                        number,
                        part.dtype.type,
                        part.shape,
                        part.pointer,
                    )
            bindings.append(binding)

        def execute() -> None:
            for binding in bindings:
                with _memory_told(self.device):
                    self._session.run_with_iobinding(binding)

        return execute


@contextmanager
def _memory_told(device: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime's own types tell causes apart in words alone
        if NO_MEMORY.search(str(error)) is None:
            raise
        raise OutOfMemory(f"{device}: {error}") from error


def _providers(
    runtime: Any, graph: Path, *, device: str, precision: str, stream: int | None
) -> list[tuple[str, dict[str, str]]]:
    """The provider of the device first, then those that take what it leaves."""
    cpu: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]
    if device == "cpu":
        return cpu
    kind, _, index = device.partition(":")
    if kind not in ("cuda", "ort-tensorrt") or not GPU_NUMBER.fullmatch(index):
        raise FvitError(f"unknown device '{device}': use cpu, or cuda:0 for the first GPU")
    wanted = "CUDAExecutionProvider" if kind == "cuda" else "TensorrtExecutionProvider"
    if wanted not in runtime.get_available_providers():
        raise FvitError(
            f"device {device} needs ONNX Runtime's CUDA build instead of the CPU one: run  "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --no-deps onnxruntime-gpu"
        )
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # finds CUDA and cuDNN where pip has put them
    here = {"device_id": index}
    if stream is not None:
        here["user_compute_stream"] = str(stream)
    # TF32 would round the products of an fp32 graph to ten bits; who wants speed exports fp16.
    cuda = [("CUDAExecutionProvider", {**here, "use_tf32": "0"}), *cpu]
    if kind == "cuda":
        return cuda
    kept = str(graph.parent / PLANS)
    options = {
        "trt_fp16_enable": str(precision == "fp16"),
        "trt_int8_enable": str(precision == "int8"),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": kept,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": kept,
    }
    return [("TensorrtExecutionProvider", {**here, **options}), *cuda]


def _tensor(node: Any) -> Tensor:
    if node.type not in DTYPES:
        raise FvitError(f"{node.name} of the graph is a {node.type}: only {', '.join(DTYPES)} are read")
    shape = tuple(side if isinstance(side, int) else None for side in node.shape)
    return Tensor(node.name, shape, np.dtype(DTYPES[node.type]))
