"""OpenVINO: Intel's and AMD's CPUs, in the fastest precision that they have instructions for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvit.engines.base import Engine, Memory, Tensor, weights_file
from fvit.engines.portions import Arrays, in_portions
from fvit.errors import FvitError
from fvit.extras import require

SHORT = {"f16": "fp16", "f32": "fp32"}

SMALL = 32e6
"""Bytes of a graph up to which what a call costs is worth memory."""

ROWS, ROWS_OF_LARGE = 8, 2
"""Rows of a small graph, and of a large one, that one CPU core works on at a time."""

OWN = 64e6
"""Bytes up to which every thread that calls computes in a compiled graph of its own, which takes some six
times those of the graph. Threads of OpenVINO's, which share one, wait for a core while another idles where
two networks take turns: the embedded pair made a quarter fewer copies a second."""


class OpenVinoEngine(Engine):
    """One ONNX graph, compiled for ROWS or ROWS_OF_LARGE rows at a time (or its own fixed batch) on one core.

    Where the CPU multiplies bfloat16, what the graph has in float is computed in that, which is another
    function than the graph in float32: `precision` says so, and records do. threads: as for ONNX Runtime.
    callers: threads that call run at once, the others wait; as many as cores unless told. Raises FvitError
    where the graph cannot be read, MissingExtra where openvino is not installed.
    """

    name = "openvino"
    device = "openvino"

    def __init__(
        self, graph: Path, *, precision: str, threads: int | None = None, callers: int | None = None
    ) -> None:
        openvino = require("openvino", extra="openvino", purpose="device openvino")
        available = len(os.sched_getaffinity(0))
        self._cores: ThreadPoolExecutor | None = None
        if (cores := threads or available) > 1:
            self._cores = ThreadPoolExecutor(cores, thread_name_prefix="fvit-cpu")
        callers = callers or available
        files = [file for file in (graph, weights_file(graph)) if file.exists()]
        size = sum(file.stat().st_size for file in files)
        own = size * callers <= OWN
        # Without a stream a run is computed by the thread that calls; else each is one core's.
        streams = 0 if own else callers
        settings = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": max(streams, 1),
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = openvino.Core()
            model = core.read_model(graph)
            self.inputs, self.outputs = (
                tuple(map(_tensor, ports)) for ports in (model.inputs, model.outputs)
            )
            # By the graph alone: results are the same to the bit for any number of callers.
            rows = ROWS if size <= SMALL else ROWS_OF_LARGE
            self.portion = next((each.shape[0] for each in self.inputs if each.shape), None) or rows
            model.reshape({each.name: [self.portion, *each.shape[1:]] for each in self.inputs})
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise FvitError(
                f"{graph} cannot be opened by OpenVINO: {_first_line(error)}; export it again"
            ) from error
        inner = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        inner = SHORT.get(inner, inner)
        self.precision = f"int8 and {inner}" if precision == "int8" else inner
        self._compile = partial(core.compile_model, model, "CPU", settings)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(1 if own else callers):
            self._idle.put(compiled.create_infer_request())
        self._further = iter(range(callers - 1 if own else 0))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = in_portions(self._call, feeds, portion=self.portion, cores=self._cores)
        return {tensor.name: values for tensor, values in zip(self.outputs, found, strict=True)}

    def bind(self, memory: Mapping[str, Memory]) -> Callable[[], None]:
        raise FvitError("OpenVINO computes on the CPU here: it has no device memory to bind")

    def _call(self, rows: dict[str, NDArray[Any]]) -> Arrays:
        request = self._request()
        try:
            found = request.infer(rows, share_inputs=True, share_outputs=False)
            return [found[tensor.name] for tensor in self.outputs]
        except RuntimeError as error:
            raise FvitError(f"OpenVINO: {_first_line(error)}") from error
        finally:
            self._idle.put(request)

    def _request(self) -> Any:
        """One that is idle, of a graph compiled now where none is and there may be another."""
        try:
            return self._idle.get_nowait()
        except Empty:
            if next(self._further, None) is not None:
                with suppress(RuntimeError):  # without memory for another, those that there are have to do
                    return self._compile().create_infer_request()
            return self._idle.get()


def _first_line(error: RuntimeError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tensor(port: Any) -> Tensor:
    shape = tuple(side.get_length() if side.is_static else None for side in port.partial_shape)
    return Tensor(port.any_name, shape, np.dtype(port.element_type.to_dtype()))
