"""Lower precision: float16 inside the torch module, int8 inside the ONNX graph."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from timm.layers import RmsNorm
from torch import Tensor, nn

from fvit.engines.base import weights_file
from fvit.engines.opening import open_engine
from fvit.errors import FvitError

Precision = Literal["fp32", "fp16", "int8"]

Feeds = dict[str, NDArray[Any]]

LARGEST_INT8_ERROR = 0.05
"""Root mean square error of an output that int8 may cost, relative to the output's own."""


WEIGHTED = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Quantised:
    """What became of a graph: its error on the calibration's first feeds, relative to the largest
    output's root mean square; the layers left in float, costliest first; the number of layers."""

    error: float
    floats: tuple[str, ...]
    layers: int


def precision_of(name: str) -> Precision:
    """The precision of this name; raises FvitError where there is none."""
    known: tuple[Precision, ...] = get_args(Precision)
    for precision in known:
        if precision == name:
            return precision
    raise FvitError(f"precision '{name}' is unknown: use one of {', '.join(known)}")


class Float32(nn.Module):
    """A norm that computes in float32 between halves: its sums of squares overflow float16."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, values: Tensor) -> Tensor:
        normed: Tensor = self.norm(values.float())
        return normed.to(values.dtype)


def halve(network: nn.Module) -> None:
    """Make a network compute in float16, its norms in float32; in place."""
    network.half()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm | nn.LayerNorm | RmsNorm):
                setattr(parent, name, Float32(child))


def quantise(
    graph: Path, calibration: Sequence[Feeds], *, on_layer: Callable[[int, int], Any] = lambda done, of: None
) -> Quantised:
    """Rewrite an fp32 graph in int8: weights per channel, activations per tensor, both symmetric, as
    pairs of QuantizeLinear and DequantizeLinear, the form that ONNX Runtime and TensorRT both read.

    Convolutions and products with weights are quantised, but those that read a concatenation: one scale for
    what comes from several layers is coarse, and OpenVINO 2026.4 computes them wrongly. Where int8 costs more
    than LARGEST_INT8_ERROR, each layer is tried alone: its cost is the error of the outputs on the first
    calibration feeds when nothing else is quantised. Then as many of the costliest stay in float as
    bring the graph within the limit. on_layer is called with the number of layers tried and of all.
    Raises FvitError where all but one in float do not suffice.
    """
    probe = calibration[0]
    expected = open_engine(graph, device="cpu").run(probe)
    weights = weights_file(graph)
    external = weights.exists()
    with tempfile.TemporaryDirectory(dir=graph.parent) as scratch:
        full = _quantise_all(graph, calibration, scratch=Path(scratch), external=external)
    layers = [node.name for node in _weighted(full)]
    always = _behind_concatenations(full)
    tried = [layer for layer in layers if layer not in always]

    def error(floats: set[str]) -> float:
        weights.unlink(missing_ok=True)  # onnx would append to it
        model = _in_float(full, floats, layers=set(layers))
        onnx.save(model, graph, save_as_external_data=external, location=weights.name)
        return _rms_error(open_engine(graph, device="cpu").run(probe), expected)

    if (reached := error(set(always))) <= LARGEST_INT8_ERROR:
        return Quantised(reached, floats=tuple(always), layers=len(layers))
    costs = {}
    for number, layer in enumerate(tried):
        costs[layer] = error(set(layers) - {layer})
        on_layer(number + 1, len(tried))
    ranked = sorted(tried, key=lambda layer: -costs[layer])
    for kept in range(1, len(tried)):
        floats = (*ranked[:kept], *always)
        if (reached := error(set(floats))) <= LARGEST_INT8_ERROR:
            return Quantised(reached, floats=floats, layers=len(layers))
    raise FvitError(
        f"{graph.name} in int8 is off by {reached:.1%} even with all but one of its layers in float: "
        "calibrate on images like those to be certified, or export fp16"
    )


def _quantise_all(
    graph: Path, calibration: Sequence[Feeds], *, scratch: Path, external: bool
) -> onnx.ModelProto:
    prepared, full = scratch / "prepared.onnx", scratch / "int8.onnx"
    quant_pre_process(
        graph,
        prepared,
        skip_symbolic_shape=True,
        save_as_external_data=external,
        all_tensors_to_one_file=True,
        external_data_location="prepared.onnx.data",
    )
    model = onnx.load(prepared, load_external_data=False)
    _part_weights(model)
    onnx.save(model, prepared)
    quantize_static(
        prepared,
        full,
        _Reader(calibration),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=external,
        op_types_to_quantize=list(WEIGHTED),
        # Products of activations, as inside attention, stay in float.
        nodes_to_quantize=[node.name for node in _weighted(model)],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            # A bias and an activation follow these: rounding between them would only cost accuracy.
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
        },
    )
    return onnx.load(full)


def _part_weights(model: onnx.ModelProto) -> None:
    """Give every weighted node weights of its own: where two share them, ONNX Runtime 1.32 cannot open the
    quantised graph on a processor without VNNI."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    taken: set[str] = set()
    for node in _weighted(model):
        name = node.input[1]
        if name in taken:
            another = model.graph.initializer.add()
            another.CopyFrom(weights[name])  # in a second file both are the same bytes
            own = next(each for i in count(1) if (each := f"{name}_{i}") not in weights)
            weights[own] = another
            another.name = node.input[1] = own
        taken.add(name)


def _weighted(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that multiply by weights, quantised or not."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] in weights:
            weights.add(node.output[0])
    return [node for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in weights]


def _behind_concatenations(full: onnx.ModelProto) -> list[str]:
    """The weighted nodes of a quantised graph whose input a Concat makes, quantised or not."""
    producers = {name: node for node in full.graph.node for name in node.output}
    found = []
    for node in _weighted(full):
        source = producers.get(node.input[0])
        while source is not None and source.op_type in ("QuantizeLinear", "DequantizeLinear"):
            source = producers.get(source.input[0])
        if source is not None and source.op_type == "Concat":
            found.append(node.name)
    return found


def _in_float(full: onnx.ModelProto, floats: set[str], *, layers: set[str]) -> onnx.ModelProto:
    """A copy of a quantised graph in which these layers read and write float."""
    model = onnx.ModelProto()
    model.CopyFrom(full)
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            pair = producers.get(name)
            if pair is None or pair.op_type != "DequantizeLinear" or node.op_type == "QuantizeLinear":
                continue
            before = producers[pair.input[0]].input[0]
            source = producers.get(before)
            if node.name in floats or (
                node.name not in layers and source is not None and source.name in floats
            ):
                node.input[place] = before
    while dead := _unread(model):
        for node in dead:
            model.graph.node.remove(node)
    return model


def _unread(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    read = {name for node in model.graph.node for name in node.input}
    read |= {output.name for output in model.graph.output}
    return [node for node in model.graph.node if not read & set(node.output)]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def _rms_error(found: Feeds, expected: Feeds) -> float:
    return max(
        float(np.sqrt(np.mean((found[name] - value) ** 2) / np.mean(value**2)))
        for name, value in expected.items()
    )
