"""Projected gradients through the torch models of a bundle, plain or smoothed (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fvit.errors import FvitError, OutOfMemory
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.denoisers import Resize
from fvit.export.rebuilding import rebuild, rebuild_denoiser
from fvit.runtime.bundle import Bundle
from fvit.runtime.schedule import Schedule

Floats = NDArray[np.float32]
Norm = Literal["linf", "l2"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits [B,C] and attribution [B,N], of one image or of noisy copies, to what an adversary wants more
of."""

STRIDE = 2.5
"""The way that all steps together can go, in radii, as in Madry et al., ICLR 2018."""


def away_from_class(index: int) -> Loss:
    """Less probability for a class, on average over the copies (Salman et al., NeurIPS 2019: as only its
    direction is followed, so is that of the logarithm of this average)."""

    def loss(logits: Tensor, attribution: Tensor) -> Tensor:
        # In double precision the probability of a class that is certain still has a slope.
        return -torch.softmax(logits.double(), dim=1)[:, index].mean()

    return loss


def away_from_tokens(tokens: Sequence[int]) -> Loss:
    """Less attribution on these tokens, and so more on the others."""

    def loss(logits: Tensor, attribution: Tensor) -> Tensor:
        return -attribution[:, list(tokens)].sum(dim=1).mean()

    return loss


class Adversary:
    """Projected gradient ascent on a classifier, or on what is smoothed, by expectation over noisy copies.

    denoiser: a denoiser graph's inputs and output, in torch. image_size: of the pixels that are attacked.
    steps: so many; copies: noisy ones a step. Its models take one step at a time, whoever calls: others wait.
    """

    def __init__(
        self,
        classifier: ExplainedClassifier,
        denoiser: nn.Module,
        schedule: Schedule,
        *,
        image_size: tuple[int, int],
        steps: int,
        copies: int,
        device: str = "cpu",
    ) -> None:
        self.steps, self.copies = steps, copies
        self._device, self._schedule = torch.device(device), schedule
        resize = nn.Identity() if image_size == classifier.size else Resize(image_size, classifier.size)
        self._classifier, self._denoiser, self._resize = (
            module.to(self._device).eval().requires_grad_(False) for module in (classifier, denoiser, resize)
        )
        self._lock = Lock()  # an explained classifier keeps what it has seen until it is asked

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        *,
        weights: Path | None,
        denoiser: str | None,
        adm_flags: str | None = None,
        null_class: int | None = None,
        steps: int,
        copies: int,
        device: str = "cpu",
    ) -> Adversary:
        """Of a bundle, from what it was exported from. Raises FvitError as rebuild and rebuild_denoiser."""
        return cls(
            rebuild(bundle, weights=weights),
            rebuild_denoiser(bundle, place=denoiser, adm_flags=adm_flags, null_class=null_class),
            bundle.manifest.schedule,
            image_size=bundle.manifest.image_size,
            steps=steps,
            copies=copies,
            device=device,
        )

    def attack(
        self,
        pixels: Floats,
        *,
        index: int | None,
        tokens: Sequence[int],
        norm: Norm,
        radius: float,
        sigma: float | None,
        draw: np.random.Generator,
        stopped: Callable[[], bool],
    ) -> Floats:
        """`follow`, away from a class, or, where none is told, from tokens."""
        loss = away_from_tokens(tokens) if index is None else away_from_class(index)
        return self.follow(
            pixels, loss=loss, norm=norm, radius=radius, sigma=sigma, draw=draw, stopped=stopped
        )

    def follow(
        self,
        pixels: Floats,
        *,
        loss: Loss,
        norm: Norm,
        radius: float,
        sigma: float | None,
        draw: np.random.Generator,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Floats:
        """An image [3,H,W] in [0,1] no further than a radius from this one, where the loss is larger.

        norm, radius: of the ball, in units of [0,1]. sigma: of the noise of the smoothed model's copies; None
        asks the classifier alone. draw: of where it begins and of all noise, so that the same gives the same
        on a CPU. Raises CancelledError where it is stopped, OutOfMemory where the device has none left.
        """
        clean = torch.from_numpy(pixels).to(self._device)
        start = torch.from_numpy(_start(pixels.shape, norm=norm, draw=draw)).to(self._device)
        moved = _inside(clean, clean + radius * start, norm=norm, radius=radius)
        for _ in range(self.steps):
            if stopped():
                raise CancelledError
            noise = None
            if sigma is not None:
                noise = sigma * draw.standard_normal((self.copies, *pixels.shape), dtype=np.float32)
            gradient = self._gradient(moved, noise, loss=loss, sigma=sigma)
            way = gradient.sign() if norm == "linf" else gradient / gradient.norm().clamp(min=1e-30)
            moved = _inside(clean, moved + STRIDE * radius / self.steps * way, norm=norm, radius=radius)
        return np.asarray(moved.cpu().numpy())

    def _gradient(self, image: Tensor, noise: Floats | None, *, loss: Loss, sigma: float | None) -> Tensor:
        """Of the loss at an image [3,H,W], with this noise [copies,3,H,W] on it, if any."""
        try:
            with self._lock:
                image = image.detach().requires_grad_(True)
                if noise is None or sigma is None:
                    seen = self._resize(image[None])
                else:
                    rows = torch.ones(len(noise), device=self._device)
                    noisy = image + torch.from_numpy(noise).to(self._device)
                    seen = self._denoiser(noisy, sigma * rows, self._schedule.timestep(sigma) * rows)
                value = loss(*self._classifier(seen))
                if not value.requires_grad:
                    raise FvitError("the denoiser's network has no gradients, which an attack follows")
                (gradient,) = torch.autograd.grad(value, image)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{self._device} has no memory for the gradients of {self.copies} copies: evaluate with "
                "--device cpu"
            ) from error
        return gradient


def _start(shape: tuple[int, ...], *, norm: Norm, draw: np.random.Generator) -> Floats:
    """Uniform in the ℓ∞ ball, or on the ℓ2 sphere, of radius 1."""
    if norm == "linf":
        return draw.uniform(-1, 1, shape).astype(np.float32)
    direction = draw.standard_normal(shape, dtype=np.float32)
    return direction / np.linalg.norm(direction)


def _inside(clean: Tensor, moved: Tensor, *, norm: Norm, radius: float) -> Tensor:
    """The nearest of the ball, then of [0,1], which only brings it nearer to a clean image in there."""
    delta = moved - clean
    if norm == "linf":
        delta = delta.clamp(-radius, radius)
    else:
        delta = delta * (radius / delta.norm().clamp(min=radius))
    return (clean + delta).clamp(0, 1)
