"""Relevance in windows -> relevance on the grid."""

from __future__ import annotations

import torch
from timm.models.swin_transformer import window_reverse
from torch import Tensor


def unwindow(
    relevance: Tensor, *, window: tuple[int, int], shift: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """[B·windows, area] -> [B, N]: windows of a grid that was shifted by `shift` and padded to whole
    windows, as Swin partitions it, put back in their places."""
    padded = [-(-side // part) * part for side, part in zip(grid, window, strict=True)]
    placed = window_reverse(relevance.view(-1, *window, 1), window, *padded)
    placed = placed[:, : grid[0], : grid[1], 0]
    return torch.roll(placed, shifts=shift, dims=(1, 2)).flatten(1)
