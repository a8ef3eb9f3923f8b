"""A diffusion model -> a module that removes Gaussian noise in one step (docs/method.md, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from fvit.errors import FvitError
from fvit.export.precision import halve
from fvit.runtime.schedule import Schedule

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A diffusion model of RGB images in [-1,1], ready to denoise.

    unet: (images [B,3,H,W], timestep [B]) -> an object with `sample` [B, 3 or 6, H, W]; prediction: what
    its first three channels are; image_size: the side that it was trained on; timestep_scale: what it
    wants timesteps of the schedule multiplied by. Raises FvitError for an unknown prediction type.
    """

    unet: Any
    schedule: Schedule
    prediction: Prediction
    image_size: int
    timestep_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.prediction not in (known := get_args(Prediction)):
            raise FvitError(
                f"the model predicts '{self.prediction}': one-shot denoising needs {', '.join(known)}"
            )


class OneShotDenoiser(nn.Module):
    """noisy [B,3,H,W] in [0,1] units, sigma [B], timestep [B], all float32 -> images [B,3,h,w] in [0,1].

    sigma: the pixel-space noise level that was added to each row; timestep: the schedule's t* for it.
    The network's direct guess of the clean image, clipped, and resized to the classifier's input where
    `output_size` differs from the image's.
    """

    def __init__(
        self, diffusion: Diffusion, *, image_size: tuple[int, int], output_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.unet = diffusion.unet.eval()
        self.prediction = diffusion.prediction
        self.timestep_scale = diffusion.timestep_scale
        self.fractional = diffusion.schedule.fractional
        self.dtype = torch.float32
        self.resize = Resize(image_size, output_size) if image_size != output_size else nn.Identity()

    def halve(self) -> None:
        """Let the network compute in float16; what surrounds it stays in float32."""
        halve(self.unet)
        self.dtype = torch.float16

    def forward(self, noisy: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
        keep = (1 / (1 + 4 * sigma * sigma))[:, None, None, None]
        signal, noise = keep.sqrt(), (1 - keep).sqrt()
        scaled = signal * (2 * noisy - 1)
        step = timestep if self.timestep_scale == 1 else timestep * self.timestep_scale
        if not self.fractional:
            step = step.long()  # looked up in a learned table
        # A model that learned its variance returns it in extra channels, which one step ignores.
        output = self.unet(scaled.to(self.dtype), step).sample[:, :3].float()
        if self.prediction == "epsilon":
            clean = (scaled - noise * output) / signal
        elif self.prediction == "v_prediction":
            clean = signal * scaled - noise * output
        else:
            clean = output
        pixels: Tensor = self.resize((clean.clamp(-1, 1) + 1) / 2)
        return pixels


class Resize(nn.Module):
    """Bicubic, antialiased resizing as two matrix products, which every engine runs alike.

    Interpolation is linear and separable, so torch's own, applied to the unit matrix, gives the two
    matrices: rows [h,H] and columns [W,w].
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("rows", self._matrix(source[0], target[0]))
        self.register_buffer("columns", self._matrix(source[1], target[1]).T.contiguous())

    def forward(self, images: Tensor) -> Tensor:
        return (self.rows @ images @ self.columns).clamp(0, 1)

    @staticmethod
    def _matrix(source: int, target: int) -> Tensor:
        units = torch.eye(source)[None, None]
        return F.interpolate(units, (target, source), mode="bicubic", antialias=True)[0, 0]


def load_diffusers(place: Path | str) -> Diffusion:
    """A diffusers folder or hub name -> the model, its UNet in float32.

    The UNet2DModel lies in `unet/` or at the top, the scheduler in `scheduler/` or at the top.
    Raises FvitError where there is no such model, the hub cannot be reached, or the model is no
    unconditional denoiser of RGB images.
    """
    inside = {"unet": "unet", "scheduler": "scheduler"}
    if Path(place).is_dir():
        inside = {name: name if (Path(place) / name).is_dir() else "" for name in inside}
    try:
        unet = UNet2DModel.from_pretrained(
            place, subfolder=inside["unet"], torch_dtype=torch.float32, low_cpu_mem_usage=False
        )
        scheduler = DDPMScheduler.from_pretrained(place, subfolder=inside["scheduler"])
    except Exception as error:  # whatever the hub's client, the parser or the constructor raises
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FvitError(
            f"{place} is no diffusers model with a UNet2DModel and a scheduler that can be read ({first}): "
            "give a local folder with --denoiser"
        ) from error
    _check(unet, place)
    products = scheduler.alphas_cumprod.double().numpy()
    # A learned embedding of the timestep knows the integers only.
    schedule = Schedule(products, fractional=unet.config.time_embedding_type != "learned")
    return Diffusion(
        unet.eval(),
        schedule,
        prediction=scheduler.config.prediction_type,
        image_size=int(unet.config.sample_size),
    )


def check_size(unet: Any, size: int) -> None:
    """Raise FvitError where images of this size cannot pass the UNet's levels."""
    factor = 2 ** (len(unet.config.block_out_channels) - 1)
    if size < factor or size % factor:
        raise FvitError(f"image size {size}: this denoiser halves images, so use a multiple of {factor}")


def _check(unet: Any, place: Path | str) -> None:
    channels = (unet.config.in_channels, unet.config.out_channels)
    if channels not in ((3, 3), (3, 6)):
        raise FvitError(
            f"{place} turns {channels[0]} channels into {channels[1]}: a denoiser of RGB images turns 3 "
            "into 3, or into 6 with a learned variance"
        )
    if unet.config.num_class_embeds is not None or unet.config.class_embed_type is not None:
        raise FvitError(f"{place} needs a class label: use an unconditional denoiser")
