"""Attention times its integrated gradient, rolled out (Xu et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fvit.export.explanations.seen import Seen, read
from fvit.export.explanations.tape import Call

STEPS = 20
"""Gradients that an integral is the mean of: what the authors take."""


def attribution_rollout(seen: Seen) -> Tensor:
    """Of each block the positive part of the largest integral over heads, added to the identity, rows
    scaled to sum 1; their product over all blocks. Rows of patches, which the head does not read in a
    class token's model, are those of the identity."""
    flow = seen.readout.expand(len(seen.maps[0]), -1)
    first, patches = flow[:, : seen.prefix], flow[:, seen.prefix :]
    for integral in reversed(seen.integrals):
        rows = integral.amax(dim=1).clamp(min=0) + torch.eye(*integral.shape[2:], device=integral.device)
        given = read(first, rows / rows.sum(dim=2, keepdim=True))
        first, patches = given[:, : seen.prefix], patches + given[:, seen.prefix :]
    return patches


class Attended(nn.Module):
    """Stands for a block's attention, of which `merged`, where it is set, is the heads' output
    [B, T, C] before the projection that ends it. Keeps the tokens `entering` the block [B, T, C]."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention
        self.merged: Any = None
        self.entering: Any = None

    @classmethod
    def replace(cls, block: Any) -> None:
        """Put one in the place of a block's attention."""
        block.attn = attended = cls(block.attn)

        def keep(block: object, inputs: tuple[Tensor, ...]) -> None:
            if attended.merged is None:
                attended.entering = inputs[0]

        block.register_forward_pre_hook(keep)

    def forward(self, tokens: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if self.merged is None:
            return self.attention(tokens, *arguments, **options)
        norm = getattr(self.attention, "norm", nn.Identity())
        return self.attention.proj(norm(self.merged))


def integrals(
    model: Any,
    calls: Sequence[Call],
    *,
    maps: Sequence[Tensor],
    seeds: Tensor,
    prefix: int,
) -> list[Tensor]:
    """For each block the prefix tokens' rows of its map times their integrated gradient
    [B, heads, prefix, T], for a model whose head reads prefix tokens alone.

    calls: of the forward pass; seeds [B, C]: the explained class. What is differentiated is the class's
    logit as the model's final norm and head read it from the block's output, with all of the block's
    attention scaled by k/STEPS, k = 1 … STEPS. What follows attention in a block acts on each token
    alone, so these rows are all that has to be computed.
    """
    found = []
    for block, each in zip(model.blocks, maps, strict=True):
        (product,) = (call for call in calls if call.name == "matmul" and call.inputs[0] is each)
        values = product.inputs[1].float()
        merged = product.outputs[0][:, :, :prefix].transpose(1, 2)
        gradient = _mean_gradient(
            model, block, tokens=block.attn.entering[:, :prefix], merged=merged.flatten(2), seeds=seeds
        ).unflatten(2, merged.shape[2:])
        rows = each[:, :, :prefix].float()
        found.append(rows * torch.einsum("bphd,bhtd->bhpt", gradient.float(), values))
    return found


def _mean_gradient(model: Any, block: Any, *, tokens: Tensor, merged: Tensor, seeds: Tensor) -> Tensor:
    """Of the class's logit with respect to the heads' output, scaled in STEPS steps: [B, prefix, C]."""
    steps = torch.arange(1, STEPS + 1, dtype=merged.dtype, device=merged.device) / STEPS
    scaled = (steps[:, None, None, None] * merged).flatten(0, 1)

    def logit(scaled: Tensor) -> Tensor:
        block.attn.merged = scaled
        leaving = block(tokens.repeat(STEPS, 1, 1))
        block.attn.merged = None
        return (model.forward_head(model.norm(leaving)) * seeds.repeat(STEPS, 1)).sum()

    return torch.func.grad(logit)(scaled).unflatten(0, (STEPS, -1)).mean(dim=0)
