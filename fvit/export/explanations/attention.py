"""Explanations from attention alone, which are the same for every class."""

from __future__ import annotations

from torch import Tensor

from fvit.export.explanations.seen import Seen, read


def attention(seen: Seen) -> Tensor:
    """The readout's attention to the patches in the last block, averaged over heads."""
    return read(seen.readout, seen.maps[-1].mean(dim=1))[:, seen.prefix :]


def rollout(seen: Seen) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): the product over all blocks of the head average
    mixed half and half with the identity, which stands for the residual connection."""
    flow = seen.readout.expand(len(seen.maps[0]), -1)
    # (readout · A_L) · A_{L−1} · … multiplies vectors instead of matrices.
    for each in reversed(seen.maps):
        flow = 0.5 * flow + 0.5 * read(flow, each.mean(dim=1))
    return flow[:, seen.prefix :]
