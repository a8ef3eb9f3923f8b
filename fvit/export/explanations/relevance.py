"""Explanations from the relevance of attention."""

from __future__ import annotations

from torch import Tensor

from fvit.export.explanations.gradients import rolled_out
from fvit.export.explanations.seen import Seen, read


def lrp(seen: Seen) -> Tensor:
    """Partial layer-wise relevance propagation, as Chefer et al. (CVPR 2021) compare with: the positive
    part of the relevance of the last block's attention, averaged over heads."""
    relevance = seen.relevances[-1].clamp(min=0).mean(dim=1)
    return read(seen.readout, relevance)[:, seen.prefix :]


def transformer_attribution(seen: Seen) -> Tensor:
    """Transformer attribution (Chefer et al., CVPR 2021): the positive part of relevance times gradient,
    averaged over heads, rolled out over all blocks."""
    products = (each * gradient for each, gradient in zip(seen.relevances, seen.gradients, strict=True))
    return rolled_out([each.clamp(min=0).mean(dim=1) for each in products], seen=seen)
