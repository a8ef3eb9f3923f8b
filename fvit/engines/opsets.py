"""Graphs for parsers that are older than the exporter: TensorRT 8.6 reads opset 17, and less of it than the
standard says."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvit.engines.base import weights_file
from fvit.errors import FvitError
from fvit.extras import require

FORGOTTEN = ("noop_with_empty_axes", "saturate")
"""Attributes that onnx's converter leaves behind and that say nothing here: axes are always given, and no
value is an 8-bit float."""


def convert(graph: Path, target: Path, *, opset: int, batch: int) -> None:
    """Write an ONNX graph again in an older opset, at a fixed batch and in the same precision. Weights that
    lie beside the graph are not read, so that they may be larger than 2 GB; they are copied to lie beside
    the target.

    Written out are Gelu, which opset 20 introduced, Split into equal parts, which onnx's converter cannot
    bring below 18, and what TensorRT 8.6 takes from its plug-ins or not at all (onnx-tensorrt's
    importers): instance normalisation, parts of shapes. onnx's own converter does the rest. Raises
    FvitError where an operator has no older form.
    """
    onnx = require("onnx", extra="tensorrt", purpose="converting graphs for an older TensorRT")
    model = onnx.load(graph, load_external_data=False)
    _Rewriting(onnx, model, batch=batch).run()
    # Domains that a quantiser declares and no operator uses would stop the converter.
    used = {node.domain for node in model.graph.node}
    for entry in [entry for entry in model.opset_import if entry.domain and entry.domain not in used]:
        model.opset_import.remove(entry)
    try:
        converted = onnx.version_converter.convert_version(model, opset)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise FvitError(f"{graph} cannot be written in opset {opset}: {first}") from error
    for node in converted.graph.node:
        known = onnx.defs.get_schema(node.op_type, opset, node.domain).attributes
        for attribute in [each for each in node.attribute if each.name not in known]:
            if attribute.name not in FORGOTTEN:
                raise FvitError(
                    f"{graph} cannot be written in opset {opset}: {node.op_type} knows no {attribute.name}"
                )
            node.attribute.remove(attribute)
    target.write_bytes(converted.SerializeToString())
    weights = weights_file(graph)
    beside = target.with_name(weights.name)  # as the graph names it
    if weights.exists() and not beside.exists():
        shutil.copyfile(weights, beside)  # onnx refuses links


class _Rewriting:
    """A model at a fixed batch, whose operators are replaced one by one."""

    def __init__(self, onnx: Any, model: Any, *, batch: int) -> None:
        self._onnx, self._graph = onnx, model.graph
        for value in (*self._graph.input, *self._graph.output):
            for side in value.type.tensor_type.shape.dim:
                if side.dim_param:
                    side.dim_value = batch
        del self._graph.value_info[:]  # what was known of a free batch
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self._types = {value.name: value.type.tensor_type for value in values}
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        for name, tensor in self._constants.items():
            kind = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            self._types[name] = kind.tensor_type
        self._nodes: list[Any] = []

    def run(self) -> None:
        written: dict[str, Callable[[Any], None]] = {
            "Gelu": self._gelu,
            "InstanceNormalization": self._instance_normalization,
            "Shape": self._shape,
            "Split": self._split,
        }
        for node in self._graph.node:
            written.get(node.op_type, self._keep)(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _gelu(self, node: Any) -> None:
        (x,) = node.input
        if any(attribute.s == b"tanh" for attribute in node.attribute):
            cube = self._make(node, "Mul", [self._make(node, "Mul", [x, x], "square"), x], "cube")
            small = self._make(node, "Mul", [cube, self._filled(0.044715, like=x)], "small")
            inner = self._make(node, "Add", [x, small], "sum")
            scaled = self._make(node, "Mul", [inner, self._filled(math.sqrt(2 / math.pi), like=x)], "scaled")
            curve = self._make(node, "Tanh", [scaled], "tanh")
        else:
            scaled = self._make(node, "Mul", [x, self._filled(math.sqrt(0.5), like=x)], "scaled")
            curve = self._make(node, "Erf", [scaled], "erf")
        shifted = self._make(node, "Add", [curve, self._filled(1.0, like=x)], "shifted")
        gate = self._make(node, "Mul", [shifted, self._filled(0.5, like=x)], "gate")
        self._replace(node, "Mul", [x, gate])

    def _instance_normalization(self, node: Any) -> None:
        """Groups are exported as instances of [batch, groups, values], without scale and bias of their own:
        a layer normalisation of the values."""
        x, scale, bias = node.input
        sides = self._sides(x)
        if sides is None or len(sides) != 3 or not (self._is_all(scale, 1.0) and self._is_all(bias, 0.0)):
            self._keep(node)
            return
        inputs = [x, self._filled(1.0, sides[2:], like=x), self._filled(0.0, sides[2:], like=x)]
        epsilon = {attribute.name: attribute.f for attribute in node.attribute}
        self._replace(node, "LayerNormalization", inputs, axis=-1, **epsilon)

    def _shape(self, node: Any) -> None:
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        start, end = bounds.get("start", 0), bounds.get("end", np.iinfo(np.int64).max)
        if (sides := self._sides(node.input[0])) is not None:
            self._add(np.array(sides[start:end], np.int64), node.output[0])
            return
        edges = [f"{node.output[0]}/start", f"{node.output[0]}/end"]
        for name, edge in zip(edges, (start, end), strict=True):
            self._add(np.array([edge], np.int64), name)
        self._replace(node, "Slice", [self._make(node, "Shape", list(node.input), "whole"), *edges])

    def _split(self, node: Any) -> None:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        sides, parts = self._sides(node.input[0]), len(node.output)
        if len(node.input) > 1 or sides is None or sides[axis] % parts:
            self._keep(node)
            return
        bounds = np.arange(parts + 1) * (sides[axis] // parts)
        for i, output in enumerate(node.output):
            edges = [f"{output}/start", f"{output}/end", f"{output}/axis"]
            for name, edge in zip(edges, (bounds[i], bounds[i + 1], axis), strict=True):
                self._add(np.array([edge], np.int64), name)
            self._replace(node, "Slice", [node.input[0], *edges], output)

    def _keep(self, node: Any) -> None:
        self._nodes.append(node)

    def _replace(
        self, node: Any, op: str, inputs: list[str], output: str | None = None, **attributes: Any
    ) -> None:
        """Another operator in a node's place, for its only output or for this one of several."""
        made, name = (list(node.output), node.name) if output is None else ([output], f"{output}/{op}")
        self._nodes.append(self._onnx.helper.make_node(op, inputs, made, name=name, **attributes))

    def _make(self, node: Any, op: str, inputs: list[str], output: str) -> str:
        """An operator before what replaces a node; returns the name of its output."""
        made = f"{node.name or node.output[0]}/{output}"
        self._nodes.append(self._onnx.helper.make_node(op, inputs, [made], name=made))
        return made

    def _sides(self, value: str) -> tuple[int, ...] | None:
        """The shape of a value; None where it is not known."""
        if value not in self._types or not self._types[value].HasField("shape"):
            return None
        sides = self._types[value].shape.dim
        return tuple(side.dim_value for side in sides) if all(side.dim_value for side in sides) else None

    def _filled(self, value: float, shape: tuple[int, ...] = (), *, like: str) -> str:
        """A constant of equal values in the type of `like`, a scalar unless told."""
        kind = self._onnx.helper.tensor_dtype_to_np_dtype(self._types[like].elem_type)
        name = f"{kind.name}{list(shape)} of {value:g}"
        if name not in self._constants:
            self._add(np.full(shape, value, kind), name)
        return name

    def _add(self, values: NDArray[Any], name: str) -> None:
        self._constants[name] = self._onnx.numpy_helper.from_array(values, name)
        self._graph.initializer.append(self._constants[name])

    def _is_all(self, constant: str, value: float) -> bool:
        tensor = self._constants.get(constant)
        if tensor is None or tensor.data_location == self._onnx.TensorProto.EXTERNAL:
            return False
        return bool((self._onnx.numpy_helper.to_array(tensor) == value).all())
