"""A denoiser of one's own, with or without any diffusion -> a module to export (docs/denoisers.md)."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fvit.errors import FvitError
from fvit.export.denoisers import resizing
from fvit.export.precision import halve
from fvit.export.preconditioning import Prediction
from fvit.runtime.schedule import Schedule

CALLABLE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

LARGEST_DIFFERENCE = 1e-4
"""Of a row's pixels when it is denoised alone, from what it is in company."""


@dataclass(frozen=True, eq=False)
class Restoration:
    """A network that takes Gaussian noise of a known level away.

    network: (noisy [B,3,H,W] in [0,1] units, sigma [B]) -> clean [B,3,H,W] in [0,1], both float32 (float16
    where it is exported in fp16), each row from that row alone; image_size: the side of images unless told
    otherwise; sigmas: the lowest and the highest σ that it serves, in units of [0,1] pixels. Raises FvitError
    where they are no range.
    """

    network: nn.Module
    image_size: int
    sigmas: tuple[float, float]

    def __post_init__(self) -> None:
        if not isinstance(self.network, nn.Module):
            raise FvitError(f"a denoiser is a torch module, not {type(self.network).__name__}")
        if not isinstance(self.image_size, int) or self.image_size < 1:
            raise FvitError(f"image_size = {self.image_size!r}: give the side in pixels")
        Schedule.between(*self.sigmas)

    @property
    def prediction(self) -> Prediction:
        return "sample"

    @property
    def schedule(self) -> Schedule:
        return Schedule.between(*self.sigmas)

    def one_shot(self, *, image_size: tuple[int, int], output_size: tuple[int, int]) -> Restorer:
        """The module to export, tried on two rows. Raises FvitError where the network fails on images of this
        size, its output is not [B,3,H,W] in float32 or no number, or a row depends on its company."""
        restorer = Restorer(self, image_size=image_size, output_size=output_size)
        draw = torch.Generator().manual_seed(0)
        noisy, sigma = (
            torch.rand(2, 3, *image_size, generator=draw),
            torch.tensor(self.sigmas, dtype=torch.float32),
        )
        try:
            with torch.no_grad():
                both = restorer.network(noisy, sigma)
                alone = [restorer.network(noisy[row : row + 1], sigma[row : row + 1]) for row in (0, 1)]
        except Exception as error:  # whatever the network raises
            raise FvitError(
                f"the denoiser's network fails on images of {image_size[0]}×{image_size[1]}: {_said(error)}"
            ) from error
        if not isinstance(both, Tensor) or both.shape != noisy.shape or both.dtype != torch.float32:
            found = f"{both.dtype} {list(both.shape)}" if isinstance(both, Tensor) else type(both).__name__
            raise FvitError(
                f"the denoiser's network makes {found} of float32 {list(noisy.shape)}: not an image"
            )
        if not bool(torch.isfinite(both).all()):
            raise FvitError("the denoiser's network makes values that are no numbers of an image")
        if not float((both - torch.cat(alone)).abs().max()) <= LARGEST_DIFFERENCE:
            raise FvitError(
                "the denoiser's network makes something else of an image in company than alone: every row of "
                "a batch must be computed from that row alone"
            )
        return restorer


class Restorer(nn.Module):
    """noisy [B,3,H,W] in [0,1] units, sigma [B], timestep [B], all float32 -> images [B,3,h,w] in [0,1]: the
    network's, clipped. Its graph leaves timestep unread. `output_size` as OneShotDenoiser."""

    def __init__(
        self, restoration: Restoration, *, image_size: tuple[int, int], output_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.network = restoration.network.eval()
        self.dtype = torch.float32
        self.resize = resizing(image_size, output_size)

    def halve(self) -> None:
        """Let the network compute in float16, its norms and the resizing in float32."""
        halve(self.network)
        self.dtype = torch.float16

    def forward(self, noisy: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
        clean = self.network(noisy.to(self.dtype), sigma.to(self.dtype)).float()
        pixels: Tensor = self.resize(clean.clamp(0, 1))
        return pixels


def is_callable(name: str) -> bool:
    """Whether this is written as module:callable."""
    return CALLABLE.fullmatch(name) is not None


def load_restoration(name: str) -> Restoration:
    """module:callable -> what the callable makes, called without arguments. The module is looked for in the
    working directory too.

    Runs that module's code. Raises FvitError where it cannot be imported, or makes no Restoration.
    """
    module, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except FvitError as error:
        raise FvitError(f"--denoiser {name}: {error}") from error
    except Exception as error:  # whatever somebody's module raises
        raise FvitError(f"--denoiser {name} fails: {_said(error)}") from error
    if not isinstance(made, Restoration):
        raise FvitError(
            f"--denoiser {name} makes {type(made).__name__}: it takes a fvit.export.restoration.Restoration"
        )
    return made


def _said(error: Exception) -> str:
    """An exception of somebody's code in one line, with the place in that code that raised it."""
    first = (str(error).strip().splitlines() or [""])[0]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<")
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first}{place}"
