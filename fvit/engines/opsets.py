"""Graphs for parsers that are older than the exporter: TensorRT 8.6 reads opset 17."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from fvit.engines.base import weights_file
from fvit.errors import FvitError
from fvit.extras import require

FORGOTTEN = ("noop_with_empty_axes", "saturate")
"""Attributes that onnx's converter leaves behind and that say nothing here: axes are always given, and no
value is an 8-bit float."""


def convert(graph: Path, target: Path, *, opset: int) -> None:
    """Write an ONNX graph again in an older opset, in the same precision. Weights that lie beside the graph
    are not read, so that they may be larger than 2 GB; they are copied to lie beside the target.

    Gelu, which opset 20 introduced, is written out through Erf or Tanh as its definition says; onnx's own
    converter does the rest. Raises FvitError where an operator has no older form.
    """
    onnx = require("onnx", extra="tensorrt", purpose="converting graphs for an older TensorRT")
    model = onnx.load(graph, load_external_data=False)
    _write_out_gelu(onnx, model)
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


def _write_out_gelu(onnx: Any, model: Any) -> None:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    kinds |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Gelu":
            nodes.append(node)
            continue
        (x,), (y,) = node.input, node.output
        name = node.name or y

        def make(op: str, inputs: list[str], output: str, *, name: str = name) -> str:
            made = f"{name}/{output}"
            nodes.append(onnx.helper.make_node(op, inputs, [made], name=made))
            return made

        def constant(value: float, *, kind: int = kinds[x], name: str = name) -> str:
            made = f"{name}/{value:g}"
            if all(tensor.name != made for tensor in model.graph.initializer):
                model.graph.initializer.append(onnx.helper.make_tensor(made, kind, [], [value]))
            return made

        tanh = any(attribute.s == b"tanh" for attribute in node.attribute)
        if tanh:
            cube = make("Mul", [make("Mul", [x, x], "square"), x], "cube")
            inner = make("Add", [x, make("Mul", [cube, constant(0.044715)], "small")], "sum")
            curve = make("Tanh", [make("Mul", [inner, constant(math.sqrt(2 / math.pi))], "scaled")], "tanh")
        else:
            curve = make("Erf", [make("Mul", [x, constant(math.sqrt(0.5))], "scaled")], "erf")
        gate = make("Mul", [make("Add", [curve, constant(1.0)], "shifted"), constant(0.5)], "gate")
        nodes.append(onnx.helper.make_node("Mul", [x, gate], [y], name=name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
