"""Explanations: from a classifier's attention maps to one attribution over its patch tokens.

Each function takes attention probabilities [B, heads, T, T] of the blocks that it needs, T = prefix
tokens and then N patch tokens, and `readout` [T], which says what the classification head reads: all
weight on the class token, or equal weights on the patches of a model that averages them. Each
returns relevance [B, N] ≥ 0. The gradient-based ones also take the gradients of the predicted class's
logit with respect to the same maps.

Where attention stays inside windows, B counts windows and T is a window's area: `unwindow` puts the
relevance back on the grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.swin_transformer import window_reverse
from torch import Tensor


def attention(maps: Sequence[Tensor], *, readout: Tensor, prefix: int) -> Tensor:
    """The readout's attention to the patches in the last block, averaged over heads."""
    rows = torch.einsum("t,bts->bs", readout, maps[-1].mean(dim=1))
    return rows[:, prefix:]


def rollout(maps: Sequence[Tensor], *, readout: Tensor, prefix: int) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): the product over all blocks of the head average
    mixed half and half with the identity, which stands for the residual connection."""
    flow = readout.expand(maps[0].shape[0], -1)
    # (readout · A_L) · A_{L−1} · … multiplies vectors instead of matrices.
    for each in reversed(maps):
        flow = 0.5 * flow + 0.5 * torch.einsum("bt,bts->bs", flow, each.mean(dim=1))
    return flow[:, prefix:]


def gradcam(maps: Sequence[Tensor], gradients: Sequence[Tensor], *, readout: Tensor, prefix: int) -> Tensor:
    """Attention times its gradient in the last block, averaged over heads, its positive part: the
    Grad-CAM of transformers as Chefer et al. (CVPR 2021) compare with."""
    cam = (maps[-1] * gradients[-1]).mean(dim=1).clamp(min=0)
    return torch.einsum("t,bts->bs", readout, cam)[:, prefix:]


def gradient_rollout(
    maps: Sequence[Tensor], gradients: Sequence[Tensor], *, readout: Tensor, prefix: int
) -> Tensor:
    """Class-specific relevance through all blocks (Chefer et al., ICCV 2021, equations 5 and 6): the
    positive part of attention times gradient, averaged over heads, added to what flows past it."""
    flow = readout.expand(maps[0].shape[0], -1)
    for each, gradient in zip(reversed(maps), reversed(gradients), strict=True):
        relevance = (each * gradient).clamp(min=0).mean(dim=1)
        flow = flow + torch.einsum("bt,bts->bs", flow, relevance)
    return flow[:, prefix:]


def unwindow(
    relevance: Tensor, *, window: tuple[int, int], shift: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """[B·windows, area] -> [B, N]: windows of a grid that was shifted by `shift` and padded to whole
    windows, as Swin partitions it, put back in their places."""
    padded = [-(-side // part) * part for side, part in zip(grid, window, strict=True)]
    placed = window_reverse(relevance.view(-1, *window, 1), window, *padded)
    placed = placed[:, : grid[0], : grid[1], 0]
    return torch.roll(placed, shifts=shift, dims=(1, 2)).flatten(1)


def normalised(relevance: Tensor) -> Tensor:
    """Relevance [B, N] ≥ 0 -> attribution [B, N], rows summing to 1."""
    # Where no patch is relevant at all (a gradient may be negative everywhere) all share alike.
    relevance = relevance + 1e-30
    return relevance / relevance.sum(dim=1, keepdim=True)


FROM_ATTENTION = {"attention": attention, "rollout": rollout}
FROM_GRADIENTS = {"gradcam": gradcam, "gradient-rollout": gradient_rollout}
EXPLANATIONS = (*FROM_ATTENTION, *FROM_GRADIENTS)
OF_LAST_BLOCK = ("attention", "gradcam")
