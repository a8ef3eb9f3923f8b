"""Explanations from attention and the gradients of a class's logit with respect to it."""

from __future__ import annotations

import torch
from torch import Tensor

from fvit.export.explanations.seen import Seen, read


def gradient_attention(seen: Seen) -> Tensor:
    """Attention times its gradient in the last block, averaged over heads, its positive part: one block
    of `gradient_rollout`, with heads averaged before the positive part is taken."""
    product = (seen.maps[-1] * seen.gradients[-1]).mean(dim=1).clamp(min=0)
    return read(seen.readout, product)[:, seen.prefix :]


def gradcam(seen: Seen) -> Tensor:
    """Grad-CAM on attention, as Chefer et al. (CVPR 2021) compare with: each head of the last block is
    weighted by the mean of its gradient over the readout's row to the patches; of the sum over heads the
    positive part. Windows of one image share their weights, as the places of a feature map do."""
    to_patches = read(seen.readout, seen.gradients[-1])[:, :, seen.prefix :]
    weights = to_patches.mean(dim=2).unflatten(0, (-1, seen.windows)).mean(dim=1)
    weights = weights.repeat_interleave(seen.windows, dim=0)
    rows = read(seen.readout, seen.maps[-1])[:, :, seen.prefix :]
    return read(weights, rows).clamp(min=0)


def gradient_rollout(seen: Seen) -> Tensor:
    """Class-specific relevance through all blocks (Chefer et al., ICCV 2021, equations 5 and 6): the
    positive part of attention times gradient, averaged over heads, rolled out."""
    products = (each * gradient for each, gradient in zip(seen.maps, seen.gradients, strict=True))
    return rolled_out([each.clamp(min=0).mean(dim=1) for each in products], seen=seen)


def rolled_out(relevances: list[Tensor], *, seen: Seen) -> Tensor:
    """Relevance [B, T, T] ≥ 0 of each block, first to last, added to what flows past it -> [B, N].

    What flows past all blocks is left out: to a patch that is nothing from a class token, and the same
    for every patch where the head averages them.
    """
    gained = torch.zeros_like(relevances[0][:, 0])
    for each in reversed(relevances):
        gained = gained + read(seen.readout + gained, each)
    return gained[:, seen.prefix :]
