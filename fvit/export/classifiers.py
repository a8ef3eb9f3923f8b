"""A timm vision transformer -> a module that returns logits and an attribution."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.models._features import FeatureHooks
from torch import Tensor, nn

from fvit.export import explanations


class ExplainedClassifier(nn.Module):
    """images [B,3,h,w] float32 in [0,1] -> logits [B,C], attribution [B,N], both float32.

    Normalisation is inside, with the model's own mean and std from timm's data config. Attention
    probabilities are materialised in the last block only; the others keep their fused form.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()
        config = resolve_model_data_config(model)
        self.size: tuple[int, int] = tuple(config["input_size"][1:])
        self.grid: tuple[int, int] = tuple(model.patch_embed.grid_size)
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1))
        last = len(model.blocks) - 1
        model.blocks[last].attn.fused_attn = False
        self._maps = FeatureHooks([f"blocks.{last}.attn.attn_drop"], model.named_modules())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model((images - self.mean) / self.std)
        (last,) = self._maps.get_output(images.device).values()
        attribution = explanations.attention(last, prefix=self.model.num_prefix_tokens)
        return logits.float(), attribution.float()
