"""Denoised smoothing as research code runs it, in torch: what our engines are measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fvit.export.classifiers import ExplainedClassifier
from fvit.export.denoisers import Diffusion, OneShotDenoiser


class ResearchLoop:
    """Repeat the image, add noise, denoise in one step, resize, classify, count.

    The modules are those that are exported. `denoise` and `classify` may be replaced by compiled ones;
    autocast: let torch choose bfloat16 where it deems that safe.
    """

    def __init__(self, classifier: nn.Module, diffusion: Diffusion, *, autocast: bool = False) -> None:
        size = (diffusion.image_size, diffusion.image_size)
        self.autocast = autocast
        self.timestep = diffusion.schedule.timestep
        explained = ExplainedClassifier(classifier)
        self.denoise: Callable[..., Any] = OneShotDenoiser(
            diffusion, image_size=size, output_size=explained.size
        )
        self.classify: Callable[..., Any] = explained

    def run(self, pixels: Tensor, *, copies: int, sigma: float, k: int, batch: int) -> tuple[Tensor, Tensor]:
        """pixels [3,H,W] in [0,1] -> class counts [C], votes [N] of that many copies."""
        levels, timesteps = torch.full((batch,), sigma), torch.full((batch,), self.timestep(sigma))
        counts, votes = torch.zeros(()), torch.zeros(())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            for first in range(0, copies, batch):
                rows = min(batch, copies - first)
                repeated = pixels.repeat(rows, 1, 1, 1)
                noisy = repeated + sigma * torch.randn_like(repeated)
                logits, attribution = self.classify(self.denoise(noisy, levels[:rows], timesteps[:rows]))
                counts = counts + nn.functional.one_hot(logits.argmax(1), logits.shape[1]).sum(0)
                chosen = attribution.topk(k, dim=1).indices
                votes = votes + torch.zeros_like(attribution).scatter(1, chosen, 1.0).sum(0)
        return counts, votes
