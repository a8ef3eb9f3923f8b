"""Explanations: from a classifier's attention maps to one attribution over its patch tokens.

Each function takes attention probabilities [B, heads, T, T] of the blocks that it needs, T = prefix
tokens and then N patch tokens, and `readout` [T], which says what the classification head reads: all
weight on the class token, or equal weights on the patches of a model that averages them. Each
returns [B, N] ≥ 0, rows summing to 1. The gradient-based ones also take the gradients of the
predicted class's logit with respect to the same maps.
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


def gradcam(maps: Sequence[Tensor], gradients: Sequence[Tensor], *, readout: Tensor, prefix: int) -> Tensor:
    """Attention times its gradient in the last block, averaged over heads, its positive part: the
    Grad-CAM of transformers as Chefer et al. (CVPR 2021) compare with."""
    cam = (maps[-1] * gradients[-1]).mean(dim=1).clamp(min=0)
    return _normalised(torch.einsum("t,bts->bs", readout, cam)[:, prefix:])


def gradient_rollout(
    maps: Sequence[Tensor], gradients: Sequence[Tensor], *, readout: Tensor, prefix: int
) -> Tensor:
    """Class-specific relevance through all blocks (Chefer et al., ICCV 2021, equations 5 and 6): the
    positive part of attention times gradient, averaged over heads, added to what flows past it."""
    flow = readout.expand(maps[0].shape[0], -1)
    for each, gradient in zip(reversed(maps), reversed(gradients), strict=True):
        relevance = (each * gradient).clamp(min=0).mean(dim=1)
        flow = flow + torch.einsum("bt,bts->bs", flow, relevance)
    return _normalised(flow[:, prefix:])


def _normalised(relevance: Tensor) -> Tensor:
    # Where no patch is relevant at all (a gradient may be negative everywhere) all share alike.
    relevance = relevance + 1e-30
    return relevance / relevance.sum(dim=1, keepdim=True)


FROM_ATTENTION = {"attention": attention, "rollout": rollout}
FROM_GRADIENTS = {"gradcam": gradcam, "gradient-rollout": gradient_rollout}
EXPLANATIONS = (*FROM_ATTENTION, *FROM_GRADIENTS)
OF_LAST_BLOCK = ("attention", "gradcam")
