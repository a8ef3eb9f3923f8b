"""A diffusion model -> a module that removes Gaussian noise in one step (docs/method.md, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from fvit.errors import FvitError
from fvit.export.precision import halve
from fvit.export.preconditioning import Preconditioning, Prediction
from fvit.export.schedulers import preconditioning_of
from fvit.runtime.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A diffusion model of RGB images in [-1,1], ready to denoise.

    unet: (images [B,3,H,W], time [B]) -> an object with `sample` [B, 3 or 6, H, W], whose first three
    channels count; where null_class is told, `class_labels` [B] too, all of them this class. image_size: the
    side that it was trained on.
    """

    unet: Any
    preconditioning: Preconditioning
    image_size: int
    null_class: int | None = None

    @property
    def prediction(self) -> Prediction:
        return self.preconditioning.prediction

    @property
    def schedule(self) -> Schedule:
        return self.preconditioning.schedule

    def one_shot(self, *, image_size: tuple[int, int], output_size: tuple[int, int]) -> OneShotDenoiser:
        """The module to export. Raises FvitError where images of this size cannot pass the UNet's levels."""
        factor = 2 ** (len(self.unet.config.block_out_channels) - 1)
        for side in image_size:
            if side < factor or side % factor:
                raise FvitError(
                    f"image size {side}: this denoiser halves images, so use a multiple of {factor}"
                )
        return OneShotDenoiser(self, image_size=image_size, output_size=output_size)


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
        self.preconditioning = diffusion.preconditioning
        self.null_class = diffusion.null_class
        self.dtype = torch.float32
        self.resize = resizing(image_size, output_size)

    def halve(self) -> None:
        """Let the network compute in float16; what surrounds it stays in float32."""
        halve(self.unet)
        self.dtype = torch.float16

    def forward(self, noisy: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
        scales = self.preconditioning.scales(2 * sigma, timestep)
        values = 2 * noisy - 1
        labels = {}
        if self.null_class is not None:
            labels["class_labels"] = torch.full_like(sigma, self.null_class, dtype=torch.long)
        # A model that learned its variance returns it in extra channels, which one step ignores.
        output = self.unet((_rows(scales.into) * values).to(self.dtype), scales.time, **labels).sample[:, :3]
        clean = _rows(scales.skip) * values + _rows(scales.out) * output.float()
        pixels: Tensor = self.resize((clean.clamp(-1, 1) + 1) / 2)
        return pixels


def _rows(scale: Tensor) -> Tensor:
    return scale[:, None, None, None]


def resizing(source: tuple[int, int], target: tuple[int, int]) -> nn.Module:
    """Resize, where there is anything to resize."""
    return Resize(source, target) if source != target else nn.Identity()


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


def load_diffusers(place: Path | str, *, null_class: int | None = None) -> Diffusion:
    """A diffusers folder or hub name -> the model, its UNet in float32.

    The UNet2DModel lies in `unet/` or at the top, the scheduler, whose class says which family the model is
    of, in `scheduler/` or at the top. null_class: which class of a class-conditional model stands for none.
    Raises FvitError where there is no such model, the hub cannot be reached, or the model is no denoiser of
    RGB images that needs nothing but its noise level.
    """
    inside = {"unet": "unet", "scheduler": "scheduler"}
    if Path(place).is_dir():
        inside = {name: name if (Path(place) / name).is_dir() else "" for name in inside}
    try:
        kind = UNet2DModel.load_config(place, subfolder=inside["unet"]).get("_class_name")
        scheduler = DDPMScheduler.load_config(place, subfolder=inside["scheduler"])
    except Exception as error:  # whatever the hub's client or the parser raises
        raise _unreadable(place, error) from error
    if kind not in (None, "UNet2DModel"):  # older folders do not name it
        raise FvitError(f"{place} holds a {kind}, and a denoiser is a UNet2DModel: give another --denoiser")
    try:
        unet, found = UNet2DModel.from_pretrained(
            place,
            subfolder=inside["unet"],
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # whatever the hub's client, the parser or the constructor raises
        raise _unreadable(place, error) from error
    for keys, what in (
        ("missing_keys", "lacks weights of"),
        ("unexpected_keys", "holds weights that are not of"),
    ):
        if names := sorted(found[keys]):
            raise FvitError(f"{place} {what} its UNet2DModel: {', '.join(names[:3])}")
    _check(unet, place)
    _check_class(unet, place, null_class)
    preconditioning = preconditioning_of(
        scheduler,
        # A learned embedding of the timestep knows the integers only.
        fractional=unet.config.time_embedding_type != "learned",
        place=place,
    )
    steps, table = len(preconditioning.schedule.alphas_cumprod), unet.config.num_train_timesteps
    if unet.config.time_embedding_type == "learned" and table < steps:
        raise FvitError(f"{place} has a learned table of {table} steps, and its scheduler gives it {steps}")
    if unet.config.time_embedding_type == "fourier" and preconditioning.prediction in ("edm", "consistency"):
        raise FvitError(
            f"{place} has a fourier time embedding, which takes logarithms of its own: with the times of "
            f"{preconditioning.prediction} use a positional one"
        )
    return Diffusion(unet.eval(), preconditioning, int(unet.config.sample_size), null_class)


def _unreadable(place: Path | str, error: Exception) -> FvitError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return FvitError(
        f"{place} is no diffusers model with a UNet2DModel and a scheduler that can be read ({first}): "
        "give a local folder with --denoiser"
    )


def _check(unet: Any, place: Path | str) -> None:
    channels = (unet.config.in_channels, unet.config.out_channels)
    if channels not in ((3, 3), (3, 6)):
        raise FvitError(
            f"{place} turns {channels[0]} channels into {channels[1]}: a denoiser of RGB images turns 3 "
            "into 3, or into 6 with a learned variance"
        )
    if unet.config.center_input_sample:
        raise FvitError(
            f"{place} takes images in [0,1] (center_input_sample), and a denoiser's network gets them in "
            "[-1,1]"
        )


def _check_class(unet: Any, place: Path | str, null_class: int | None) -> None:
    classes, kind = unet.config.num_class_embeds, unet.config.class_embed_type
    if kind is not None:
        raise FvitError(
            f"{place} needs a class embedding of type '{kind}', which no number stands for: use an "
            "unconditional denoiser"
        )
    if classes is None:
        if null_class is not None:
            raise FvitError(f"{place} takes no class: leave --null-class out")
    elif null_class is None:
        raise FvitError(
            f"{place} needs a class label: say with --null-class which of its classes, 0 to {classes - 1}, "
            "was trained to stand for none, or use an unconditional denoiser"
        )
    elif not 0 <= null_class < classes:
        raise FvitError(f"--null-class {null_class}: {place} has the classes 0 to {classes - 1}")
