"""Which engine serves a device."""

from __future__ import annotations

from pathlib import Path

from fvit.engines.base import Engine
from fvit.engines.onnxruntime import OnnxRuntimeEngine
from fvit.engines.openvino import OpenVinoEngine


def open_engine(
    graph: Path,
    *,
    device: str,
    precision: str = "fp32",
    stream: int | None = None,
    threads: int | None = None,
    callers: int | None = None,
) -> Engine:
    """An engine for this ONNX graph on `device`: "cpu", "cuda:N" or "ort-tensorrt:N" for ONNX Runtime and its
    providers, "openvino".

    precision: what the graph is exported in. stream: address of the CUDA stream to work on; the engine's own
    unless told. threads: CPU cores that share the rows of one run; all unless told. callers: threads that
    call run at once; as many as cores unless told. Raises FvitError for a device that is unknown or that this
    installation cannot use, and for a graph that cannot be read.
    """
    if device == "openvino":
        return OpenVinoEngine(graph, precision=precision, threads=threads, callers=callers)
    return OnnxRuntimeEngine(graph, device=device, precision=precision, stream=stream, threads=threads)
