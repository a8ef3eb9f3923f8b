"""A small network that takes a denoiser's place: residual convolutions on folded pixels (docs/denoisers.md).

It has no norm: with the second convolution of each block at zero in the beginning it trains without one, and
nothing has to be folded or to be summed over an image when it is exported and quantised.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fvit.errors import FvitError
from fvit.export.denoisers import resizing
from fvit.export.precision import halve
from fvit.export.preconditioning import Prediction
from fvit.runtime.schedule import Schedule

WIDTHS = {"tiny": 24, "small": 32, "base": 48}
"""Channels at the finer scale where 4×4 pixels are folded; twice as many where 8×8 are."""

LARGEST_FINE = 128
"""Images from this side on are folded by 8, smaller ones by 4."""

DATA_STD = 0.5
"""Standard deviation of images in [-1,1] that the preconditioning assumes, as Karras et al. 2022 do."""


@dataclass(frozen=True)
class Shape:
    """What a student's weights fit: channels at the finer scale (twice as many at the coarser), pixels folded
    along a side, and the range of σ that it is trained for, in units of [0,1] images."""

    width: int
    fold: int
    lowest: float
    highest: float

    @property
    def schedule(self) -> Schedule:
        """Two steps, the ends of the range: t* runs from 0 to 1 with log σ."""
        return Schedule.between(self.lowest, self.highest)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def shape_of(*, size: str, image_size: tuple[int, int], sigmas: tuple[float, float]) -> Shape:
    """The shape of this size for images of these sides (rows, columns).

    Raises FvitError for an unknown size, sides that cannot be folded, and a range of σ that is none.
    """
    if size not in WIDTHS:
        raise FvitError(f"size '{size}' is unknown: use one of {', '.join(WIDTHS)}")
    fold = 8 if max(image_size) >= LARGEST_FINE else 4
    check_sides(image_size, fold=fold)
    shape = Shape(WIDTHS[size] * fold // 4, fold, *sigmas)
    try:
        _ = shape.schedule
    except FvitError as error:
        raise FvitError(
            f"σ from {shape.lowest:g} to {shape.highest:g} is no range that a student can follow: give one "
            "such as 0.12:1"
        ) from error
    return shape


def check_sides(image_size: tuple[int, int], *, fold: int) -> None:
    """Raise FvitError for sides (rows, columns) that a student of this fold cannot take."""
    if any(side % (2 * fold) for side in image_size):
        raise FvitError(
            f"images of {image_size[0]}×{image_size[1]} cannot be folded: this student needs sides that are "
            f"multiples of {2 * fold}"
        )


class Block(nn.Module):
    """A residual block, [B,C,h,w] and a level's features [B,D] -> [B,C,h,w]: σ scales and shifts what lies
    between its two convolutions."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, 3, padding=1)
        self.level = nn.Linear(features, 2 * channels)
        self.leave = nn.Conv2d(channels, channels, 3, padding=1)
        for zero in (*self.level.parameters(), *self.leave.parameters()):
            nn.init.zeros_(zero)

    def forward(self, values: Tensor, features: Tensor) -> Tensor:
        scale, shift = self.level(features)[:, :, None, None].chunk(2, dim=1)
        inner = F.relu(self.enter(values))
        return values + self.leave(inner * (1 + scale) + shift)


class Network(nn.Module):
    """Images [B,3,H,W] and levels [B] in [-1,1] -> [B,3,H,W]; two scales, blocks before, inside and after."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, features = shape.width, 2 * shape.width
        folded = 3 * shape.fold**2
        self.features = nn.Sequential(
            nn.Linear(3, features), nn.ReLU(), nn.Linear(features, features), nn.ReLU()
        )
        self.fold = nn.PixelUnshuffle(shape.fold)
        self.first = nn.Conv2d(folded, width, 3, padding=1)
        self.before = nn.ModuleList(Block(width, features) for _ in range(2))
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.inside = nn.ModuleList(Block(2 * width, features) for _ in range(2))
        self.up = nn.Conv2d(2 * width, 4 * width, 1)
        self.unfold = nn.PixelShuffle(2)
        self.after = nn.ModuleList(Block(width, features) for _ in range(2))
        self.last = nn.Conv2d(width, folded, 3, padding=1)
        self.lay_out = nn.PixelShuffle(shape.fold)
        nn.init.zeros_(self.last.weight)

    def forward(self, images: Tensor, level: Tensor) -> Tensor:
        features = self.features(torch.stack([level, level**2, level**3], dim=1))
        fine = self.first(self.fold(images))
        for block in self.before:
            fine = block(fine, features)
        coarse = self.down(fine)
        for block in self.inside:
            coarse = block(coarse, features)
        fine = fine + self.unfold(self.up(coarse))
        for block in self.after:
            fine = block(fine, features)
        laid: Tensor = self.lay_out(self.last(F.relu(fine)))
        return laid


class Student(nn.Module):
    """noisy [B,3,H,W] in [0,1] units, sigma [B], timestep [B], all float32 -> images [B,3,h,w] in [0,1].

    A denoiser graph's inputs and output. The network is preconditioned in [-1,1] as Karras et al. (2022,
    table 1) do; the level that it sees is the timestep of `shape.schedule`. `output_size` as OneShotDenoiser.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.network = Network(shape)
        self.dtype = torch.float32
        self.resize: nn.Module = nn.Identity()

    def resized(self, image_size: tuple[int, int], output_size: tuple[int, int]) -> Student:
        """Itself, giving images of the classifier's size."""
        self.resize = resizing(image_size, output_size)
        return self

    def halve(self) -> None:
        """Let the network compute in float16; what surrounds it stays in float32."""
        halve(self.network)
        self.dtype = torch.float16

    def guess(self, noisy: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
        """The clean images in [-1,1], not clipped: what is trained."""
        level = (2 * sigma)[:, None, None, None]
        energy = level * level + DATA_STD**2
        values = 2 * noisy - 1
        scaled = (values / energy.sqrt()).to(self.dtype)
        output = self.network(scaled, (2 * timestep - 1).to(self.dtype)).float()
        return DATA_STD**2 / energy * values + level * DATA_STD / energy.sqrt() * output

    def forward(self, noisy: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
        pixels: Tensor = self.resize((self.guess(noisy, sigma, timestep).clamp(-1, 1) + 1) / 2)
        return pixels


@dataclass(frozen=True, eq=False)
class Distilled:
    """A trained student as a denoiser to export. image_size: the side of images unless told otherwise."""

    student: Student
    image_size: int

    @property
    def prediction(self) -> Prediction:
        return "sample"

    @property
    def schedule(self) -> Schedule:
        return self.student.shape.schedule

    def one_shot(self, *, image_size: tuple[int, int], output_size: tuple[int, int]) -> Student:
        """The module to export: the student itself. Raises FvitError for sides that it cannot fold."""
        check_sides(image_size, fold=self.student.shape.fold)
        return self.student.resized(image_size, output_size)
