"""Explanations: from what a classifier's blocks did to one attribution over its patch tokens.

Their equations, and where the literature leaves a choice the choice: docs/method.md, section 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fvit.export.explanations.attention import attention, rollout
from fvit.export.explanations.gradients import gradcam, gradient_attention, gradient_rollout
from fvit.export.explanations.integration import attribution_rollout
from fvit.export.explanations.relevance import lrp, transformer_attribution
from fvit.export.explanations.seen import Seen

Need = Literal["gradients", "relevances", "integrals"]


@dataclass(frozen=True)
class Explanation:
    """relevance: `Seen` -> [B, N] ≥ 0; needs: what `Seen` must hold beside the maps, which also says
    whether the explanation depends on a class; last_block: whether it reads the last block alone."""

    relevance: Callable[[Seen], Tensor]
    needs: frozenset[Need]
    last_block: bool = False


EXPLANATIONS = {
    "attention": Explanation(attention, frozenset(), last_block=True),
    "rollout": Explanation(rollout, frozenset()),
    "gradient-attention": Explanation(gradient_attention, frozenset({"gradients"}), last_block=True),
    "gradcam": Explanation(gradcam, frozenset({"gradients"}), last_block=True),
    "gradient-rollout": Explanation(gradient_rollout, frozenset({"gradients"})),
    "attribution-rollout": Explanation(attribution_rollout, frozenset({"integrals"})),
    "lrp": Explanation(lrp, frozenset({"relevances"}), last_block=True),
    "transformer-attribution": Explanation(transformer_attribution, frozenset({"gradients", "relevances"})),
}
OF_LAST_BLOCK = tuple(name for name, each in EXPLANATIONS.items() if each.last_block)
OF_A_CLASS = tuple(name for name, each in EXPLANATIONS.items() if each.needs)


def normalised(relevance: Tensor) -> Tensor:
    """Relevance [B, N] ≥ 0 -> attribution [B, N], rows summing to 1."""
    total = relevance.sum(dim=1, keepdim=True)
    # Where no patch is relevant at all (a gradient may be negative everywhere) all share alike.
    shares = relevance / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, shares, 1 / relevance.shape[1])
