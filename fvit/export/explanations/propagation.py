"""Relevance by the deep-Taylor rules of Chefer et al. (CVPR 2021): from a logit back to attention maps.

Each rule takes one call of the forward pass and the relevance of its outputs, and returns that of its
inputs; docs/method.md, section 10.2, states them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fvit.errors import FvitError
from fvit.export.explanations.tape import Call, tensors

STABILISER = 0.01
"""Of the root mean square of what is divided by: so near to zero a quotient is damped."""

TINY = 1e-30
"""What 0 is divided by instead of 0."""

KEPT = frozenset({
    "layer_norm", "softmax", "gelu", "silu", "relu", "sigmoid", "tanh", "dropout", "neg", "to", "type_as",
    "float", "contiguous",
})  # fmt: skip
"""Functions that hand their relevance on as it is; so do sums with constants and multiples."""

MOVED = frozenset({
    "reshape", "view", "flatten", "unflatten", "permute", "transpose", "unbind", "chunk", "split", "cat",
    "stack", "squeeze", "unsqueeze", "__getitem__", "expand", "repeat_interleave", "roll", "pad",
})  # fmt: skip
"""Functions that only put values elsewhere: relevance goes back the way that the values came."""


def propagate(
    calls: Sequence[Call], *, logits: Tensor, seeds: Tensor, maps: Sequence[Tensor], model: str
) -> list[Tensor]:
    """Relevance of each of `maps`, in their shapes, in float32.

    calls: of the forward pass, to the logits [B, C]; seeds [B, C]: the logits' relevance; model: its
    name, for errors. Raises FvitError where the model computes with what no rule is known for.
    """
    arrived = {id(logits): seeds}
    found: dict[int, Tensor] = {}
    wanted = {id(each) for each in maps}
    for call in reversed(calls):
        if not wanted - found.keys():
            break
        relevances = [arrived.pop(id(output), None) for output in call.outputs]
        if all(each is None for each in relevances):
            continue
        filled = [
            torch.zeros_like(output, dtype=torch.float32) if each is None else each
            for output, each in zip(call.outputs, relevances, strict=True)
        ]
        found |= {
            id(output): each
            for output, each in zip(call.outputs, filled, strict=True)
            if id(output) in wanted
        }
        # What only lends a type is an input, too, and gets nothing.
        for tensor, each in zip(call.inputs, _incoming(call, filled, model=model), strict=False):
            before = arrived.get(id(tensor))
            arrived[id(tensor)] = each if before is None else before + each
    return [found[id(each)] for each in maps]


def _incoming(call: Call, relevances: list[Tensor], *, model: str) -> list[Tensor]:
    name, operands = call.name, len(call.inputs)
    if name in KEPT or (name in ("add", "add_", "sub", "mul", "div") and operands == 1):
        return relevances
    if name in MOVED:
        return _moved(call, relevances)
    if name == "linear" and operands == 1:
        return [_linear(call, relevances[0])]
    if name == "matmul" and operands == 2:
        return _matrix_product(call, relevances[0])
    if name == "add" and operands == 2:
        return _sum(call, relevances[0])
    if name == "mul" and operands == 2:
        # Each factor alone would get all of it, x·(R/xy)·y.
        return [relevances[0] / 2, relevances[0] / 2]
    if name in ("mean", "amax"):
        return [_pooled(call, relevances[0])]
    raise FvitError(
        f"{model} computes with {name}, which relevance has no rule for: use an explanation without "
        "relevance, such as gradient-rollout"
    )


def _moved(call: Call, relevances: list[Tensor]) -> list[Tensor]:
    def again(*inputs: Tensor) -> tuple[Tensor, ...]:
        new = {id(old): each for old, each in zip(call.inputs, inputs, strict=True)}
        arguments, options = _replaced((call.arguments, call.options), new)
        return tuple(tensors(call.function(*arguments, **options)))

    back: Any = torch.func.vjp(again, *(each.float() for each in call.inputs))[1]
    return list(back(tuple(relevances)))


def _linear(call: Call, relevance: Tensor) -> Tensor:
    """The share of each input's positive products x_i·w_ji in all of an output's."""
    given = dict(zip(("input", "weight"), call.arguments, strict=False)) | call.options
    values, weight = given["input"].float(), given["weight"].float()
    sizes, magnitudes = values.abs(), weight.abs()
    # [p]⁺ = (p + |p|)/2 for every product p: one more matrix, not two.
    largest = F.linear(sizes, magnitudes)
    positive = 0.5 * (F.linear(values, weight) + largest)
    # Rounding alone is left where no product is positive; such an output has nothing to share out.
    any_positive = positive > 1e-5 * largest
    shared = torch.where(any_positive, relevance / torch.where(any_positive, positive, 1.0), 0.0)
    return 0.5 * (values * (shared @ weight) + sizes * (shared @ magnitudes))


def _matrix_product(call: Call, relevance: Tensor) -> list[Tensor]:
    """Half of it to each factor, in proportion to the products' terms."""
    left, right = (each.float() for each in call.inputs)
    shared = 0.5 * _quotient(relevance, call.outputs[0].float())
    return [left * (shared @ right.mT), right * (left.mT @ shared)]


def _sum(call: Call, relevance: Tensor) -> list[Tensor]:
    """In proportion to the terms; then each term's total is made its share in magnitude."""
    shared = _quotient(relevance, call.outputs[0].float())
    terms = [each.float() * shared for each in call.inputs]
    totals = [_total(each) for each in terms]
    scale = _total(relevance) / (totals[0].abs() + totals[1].abs()).clamp(min=TINY)
    return [each * total.sign() * scale for each, total in zip(terms, totals, strict=True)]


def _pooled(call: Call, relevance: Tensor) -> Tensor:
    values = call.inputs[0].float()
    pooled = call.outputs[0].float()
    back: Any = torch.func.vjp(lambda x: call.function(x, *call.arguments[1:], **call.options), values)[1]
    (gradient,) = back(_quotient(relevance, pooled))
    return values * gradient


def _quotient(relevance: Tensor, values: Tensor) -> Tensor:
    """relevance/values, damped where an image's value is small beside its others."""
    square = values.square()
    scale = square.mean(dim=tuple(range(1, values.ndim)), keepdim=True)
    return relevance * values / (square + STABILISER**2 * scale).clamp(min=TINY)


def _total(relevance: Tensor) -> Tensor:
    return relevance.sum(dim=tuple(range(1, relevance.ndim)), keepdim=True)


def _replaced(value: Any, new: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if isinstance(value, dict):
        return {key: _replaced(each, new) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_replaced(each, new) for each in value)
    return value
