"""What an explanation sees of a classifier."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """Of the blocks that an explanation reads, first to last, in float32: T tokens are `prefix` class
    and register tokens and then N patches.

    maps: attention probabilities [B, heads, T, T]. gradients: of the explained class's logit with
    respect to the maps, in their shape. relevances: of the maps, in their shape. integrals: the prefix
    tokens' rows of the maps times their integrated gradients [B, heads, prefix, T].
    readout [T]: what the classification head reads, all weight on the class token or equal weights on
    the patches of a model that averages them. Where attention stays inside windows, B counts windows,
    `windows` of them an image, and T is a window's area.
    """

    maps: list[Tensor]
    readout: Tensor
    prefix: int
    windows: int = 1
    gradients: list[Tensor] = field(default_factory=list)
    relevances: list[Tensor] = field(default_factory=list)
    integrals: list[Tensor] = field(default_factory=list)


def read(weights: Tensor, matrices: Tensor) -> Tensor:
    """weights [..., T] and matrices [..., T, S] -> rows of the matrices, weighted and added up [..., S]."""
    # As a matrix product it would be quantised with the network's.
    return (weights.unsqueeze(-1) * matrices).sum(dim=-2)
