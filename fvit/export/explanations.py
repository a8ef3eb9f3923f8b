"""Explanations: from a classifier's attention maps to one attribution over its patch tokens."""

from __future__ import annotations

from torch import Tensor


def attention(last: Tensor, *, prefix: int) -> Tensor:
    """The class token's attention in the last block.

    last: [B, heads, prefix+N, prefix+N] attention probabilities, the class token first among
    `prefix` tokens that are no patches. Returns [B, N] ≥ 0, rows summing to 1.
    """
    return normalised(last[:, :, 0, prefix:].mean(dim=1))


def normalised(relevance: Tensor) -> Tensor:
    """Relevance [B, N] ≥ 0 scaled so that rows sum to 1."""
    return relevance / relevance.sum(dim=1, keepdim=True)
