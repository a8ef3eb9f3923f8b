"""Explanations: from a classifier's attention maps to one attribution over its patch tokens.

Each function takes attention probabilities [B, heads, T, T] of the blocks that it needs, T = prefix
tokens and then N patch tokens, and `readout` [T], which says what the classification head reads: all
weight on the class token, or equal weights on the patches of a model that averages them. Each
returns [B, N] ≥ 0, rows summing to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def attention(maps: Sequence[Tensor], *, readout: Tensor, prefix: int) -> Tensor:
    """The readout's attention to the patches in the last block, averaged over heads."""
    rows = torch.einsum("t,bts->bs", readout, maps[-1].mean(dim=1))
    return _normalised(rows[:, prefix:])


def rollout(maps: Sequence[Tensor], *, readout: Tensor, prefix: int) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): the product over all blocks of the head average
    mixed half and half with the identity, which stands for the residual connection."""
    flow = readout.expand(maps[0].shape[0], -1)
    # (readout · A_L) · A_{L−1} · … multiplies vectors instead of matrices.
    for each in reversed(maps):
        flow = 0.5 * flow + 0.5 * torch.einsum("bt,bts->bs", flow, each.mean(dim=1))
    return _normalised(flow[:, prefix:])


def _normalised(relevance: Tensor) -> Tensor:
    return relevance / relevance.sum(dim=1, keepdim=True)


EXPLANATIONS = {"attention": attention, "rollout": rollout}
