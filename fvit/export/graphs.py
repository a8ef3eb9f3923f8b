"""A torch module -> an ONNX graph, checked against the module itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from fvit.engines.base import open_engine
from fvit.errors import FvitError

TOLERANCE = 1e-4
"""Largest relative error of an fp32 graph against torch."""


def export_graph(
    module: nn.Module,
    inputs: dict[str, Tensor],
    *,
    outputs: tuple[str, ...],
    graph: Path,
    backward: bool = False,
) -> float:
    """Write `module` as ONNX and return its largest relative error against torch.

    inputs: an example of each input, in the order of the module's arguments, its batch larger than
    1; inputs with dimensions have a dynamic batch, scalars are scalars. The graph is checked by
    onnx.checker and run at the example's batch and at batch 1. backward: the module differentiates
    inside, which is traced operator by operator at the example's batch; engines then pad to it.
    Raises FvitError where the error exceeds TOLERANCE.
    """
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
        torch.onnx.export(
            traced,
            tuple(inputs.values()),
            graph,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=None
            if backward
            else tuple({0: batch} if value.ndim else None for value in inputs.values()),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _strip(graph)
    onnx.checker.check_model(graph, full_check=True)
    engine = open_engine(graph, device="cpu")
    single = {name: value[:1] if value.ndim else value for name, value in inputs.items()}
    errors = []
    for feeds in (inputs, single):
        found = engine.run({name: value.numpy() for name, value in feeds.items()})
        errors.append(relative_error(found, run_torch(module, feeds, outputs=outputs)))
    if (worst := max(errors)) > TOLERANCE:
        raise FvitError(
            f"{graph.name} differs from torch by {worst:.1e}, more than {TOLERANCE:.0e}: not exported"
        )
    return worst


def _strip(graph: Path) -> None:
    """Drop where each operator came from (paths and stack traces of this machine), so that the same
    model gives the same bytes wherever it is exported."""
    model = onnx.load(graph)
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
    """The largest difference of any output, relative to the largest magnitude in that output."""
    return max(
        float(np.abs(found[name] - value).max() / np.abs(value).max()) for name, value in expected.items()
    )
