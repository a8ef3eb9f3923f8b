"""ONNX Runtime: the CPU, and CUDA where onnxruntime-gpu is installed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvit.engines.base import Engine, Tensor
from fvit.errors import FvitError
from fvit.extras import require

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class OnnxRuntimeEngine(Engine):
    """One ONNX graph in an onnxruntime session.

    Raises FvitError where the device is unknown or no provider for it is installed.
    """

    name = "onnxruntime"

    def __init__(self, graph: Path, *, device: str) -> None:
        runtime = require("onnxruntime", extra="gpu", purpose="running a bundle (CPU: plain 'fvit')")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        self._session = runtime.InferenceSession(graph, options, providers=_providers(runtime, device))
        self.device = device
        self.inputs = tuple(map(_tensor, self._session.get_inputs()))
        self.outputs = tuple(map(_tensor, self._session.get_outputs()))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = [tensor.name for tensor in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))


def _providers(runtime: Any, device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    cuda = re.fullmatch(r"cuda:(\d+)", device)
    if cuda is None:
        raise FvitError(f"unknown device '{device}': use cpu, or cuda:0 for the first GPU")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise FvitError(
            f"device {device} needs ONNX Runtime's CUDA build instead of the CPU one: run  "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --no-deps onnxruntime-gpu"
        )
    return [("CUDAExecutionProvider", {"device_id": int(cuda[1])}), "CPUExecutionProvider"]


def _tensor(node: Any) -> Tensor:
    shape = tuple(side if isinstance(side, int) else None for side in node.shape)
    return Tensor(node.name, shape, np.dtype(DTYPES[node.type]))
