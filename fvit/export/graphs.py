"""A torch module -> an ONNX graph, checked against the module itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from fvit.engines.opening import open_engine
from fvit.errors import FvitError

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
"""Largest relative error of a graph against the fp32 module in torch, by the graph's precision."""

INLINE = 1_800_000_000
"""Bytes of weights up to which they lie inside the ONNX file, which protobuf limits to 2 GB."""


class Exportable(Protocol):
    """A module that can be told to compute in float16."""

    def halve(self) -> None: ...


def export_graph(
    module: nn.Module,
    inputs: dict[str, Tensor],
    *,
    outputs: tuple[str, ...],
    graph: Path,
    backward: bool = False,
    half: bool = False,
) -> float:
    """Write `module` as ONNX and return its largest relative error against torch in fp32.

    inputs: an example of each input, in the order of the module's arguments, its batch larger than
    1; the batch of the graph is dynamic. The graph is checked by onnx.checker and run at the example's
    batch and at batch 1. backward: the module differentiates
    inside, which is traced operator by operator at the example's batch; engines then pad to it.
    half: the graph computes in float16, and the module is left so. Weights beyond INLINE bytes go into
    a second file beside the graph. Raises FvitError where torch cannot export the module or the
    error exceeds TOLERANCE.
    """
    examples = (inputs, {name: value[:1] for name, value in inputs.items()})
    expected = [run_torch(module, feeds, outputs=outputs) for feeds in examples]
    if half:
        cast(Exportable, module).halve()
    bytes_of_weights = sum(value.nbytes for value in module.state_dict().values())
    batch = torch.export.Dim("batch")
    traced: nn.Module = module.eval()
    if backward:
        # ONNX knows empty_like, not the operator that it is decomposed into.
        table = dict(core_aten_decompositions())
        table.pop(torch.ops.aten.empty_like.default, None)
        with torch.no_grad():
            traced = make_fx(module, decomposition_table=table)(*inputs.values())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                traced,
                tuple(inputs.values()),
                graph,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=None if backward else ({0: batch},) * len(inputs),
                dynamo=True,
                external_data=bytes_of_weights > INLINE,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            said = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"
            raise FvitError(
                f"{graph.name} cannot be made: torch cannot export the module ({said})"
            ) from error
    _strip(graph)
    onnx.checker.check_model(graph, full_check=True)
    engine = open_engine(graph, device="cpu")
    errors = [
        relative_error(engine.run({name: value.numpy() for name, value in feeds.items()}), values)
        for feeds, values in zip(examples, expected, strict=True)
    ]
    worst = float(np.max(errors))
    if not worst <= (tolerance := TOLERANCE["fp16" if half else "fp32"]):
        raise FvitError(
            f"{graph.name} differs from torch by {worst:.1e}, more than {tolerance:.0e}: not exported"
        )
    return worst


def _strip(graph: Path) -> None:
    """Drop where each operator came from (paths and stack traces of this machine), so that the same
    model gives the same bytes wherever it is exported."""
    model = onnx.load(graph, load_external_data=False)
    del model.metadata_props[:]
    parts = [model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info]
    for part in [*parts, *model.graph.input, *model.graph.output, *model.functions]:
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, graph)


def run_torch(
    module: nn.Module, inputs: dict[str, Tensor], *, outputs: tuple[str, ...]
) -> dict[str, NDArray[Any]]:
    """The module's own outputs for these inputs, as arrays by name."""
    with torch.no_grad():
        found = module(*inputs.values())
    found = (found,) if isinstance(found, Tensor) else found
    return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}


def relative_error(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> float:
    """The largest difference of any output, relative to the largest magnitude in that output; NaN where
    an output holds one, which Python's max would pass over."""
    errors = [np.abs(found[name] - value).max() / np.abs(value).max() for name, value in expected.items()]
    return float(np.max(errors))
