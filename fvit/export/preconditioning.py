"""How the network of a diffusion model becomes a denoiser: one formula, family by family (docs/method.md,
section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from fvit.errors import FvitError
from fvit.runtime.schedule import Schedule

Prediction = Literal["epsilon", "v_prediction", "sample", "edm", "flow", "consistency"]
"""What a network's output is part of the denoiser as, by the manifest's names."""

StepPrediction = Literal["epsilon", "v_prediction", "sample"]
"""Of networks that were trained with a schedule of ᾱ_t."""


@dataclass(frozen=True)
class Scales:
    """Of D(x, s) = skip·x + out·F(into·x, time), where x = y + s·z for images y in [-1,1]; all [B]."""

    skip: Tensor
    out: Tensor
    into: Tensor
    time: Tensor


class Preconditioning(Protocol):
    """A family of diffusion models, with what one model of it was trained for."""

    @property
    def prediction(self) -> Prediction: ...

    @property
    def schedule(self) -> Schedule:
        """Which σ the model serves, in units of [0,1] pixels, and the `timestep` that the graph gets."""

    def scales(self, level: Tensor, timestep: Tensor) -> Scales:
        """level: [B] float32, s = 2σ; timestep: [B] float32, the schedule's of σ."""


@dataclass(frozen=True, eq=False)
class VariancePreserving:
    """DDPM and its kin: F sees √ᾱ_t·y + √(1−ᾱ_t)·z and a step t. Ho et al. 2020; v: Salimans & Ho 2022.

    timestep_scale: what F wants steps multiplied by; a schedule that is not fractional gives F integers.
    Raises FvitError for an unknown prediction.
    """

    schedule: Schedule
    prediction: StepPrediction
    timestep_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.prediction not in (known := get_args(StepPrediction)):
            raise FvitError(
                f"the model predicts '{self.prediction}': one-shot denoising needs {', '.join(known)}"
            )

    def scales(self, level: Tensor, timestep: Tensor) -> Scales:
        keep = 1 / (1 + level * level)  # ᾱ, which follows from the level alone
        signal = keep.sqrt()
        time = timestep if self.timestep_scale == 1 else timestep * self.timestep_scale
        if not self.schedule.fractional:
            time = time.long()  # looked up in a learned table
        if self.prediction == "epsilon":
            return Scales(torch.ones_like(level), -level, signal, time)
        if self.prediction == "v_prediction":
            return Scales(keep, -level * signal, signal, time)
        return Scales(torch.zeros_like(level), torch.ones_like(level), signal, time)


@dataclass(frozen=True, kw_only=True)
class Levels:
    """lowest, highest: the levels s in [-1,1] that a model was trained for; data_std: σ_data."""

    lowest: float
    highest: float
    data_std: float

    @property
    def schedule(self) -> Schedule:
        return Schedule.between(self.lowest / 2, self.highest / 2)


@dataclass(frozen=True, kw_only=True)
class Edm(Levels):
    """Karras et al. 2022, table 1. negated: F's output counts with the other sign, as diffusers has it for
    `v_prediction`."""

    negated: bool = False

    @property
    def prediction(self) -> Prediction:
        return "edm"

    def scales(self, level: Tensor, timestep: Tensor) -> Scales:
        energy = level * level + self.data_std**2
        spread = energy.sqrt()
        out = level * self.data_std / spread
        return Scales(self.data_std**2 / energy, -out if self.negated else out, 1 / spread, level.log() / 4)


@dataclass(frozen=True, kw_only=True)
class Consistency(Levels):
    """Song et al. 2023, appendix C: Karras's scales, moved so that D(x, lowest) = x."""

    @property
    def prediction(self) -> Prediction:
        return "consistency"

    def scales(self, level: Tensor, timestep: Tensor) -> Scales:
        spread = (level * level + self.data_std**2).sqrt()
        above = level - self.lowest
        skip = self.data_std**2 / (above * above + self.data_std**2)
        return Scales(skip, above * self.data_std / spread, 1 / spread, 250 * level.log())


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """Liu et al. 2023, Lipman et al. 2023: F sees (1−t)·y + t·z and steps·t, and predicts z − y.

    steps: of training, which count from 1; the last one is noise alone, which no finite level reaches.
    """

    steps: int

    @property
    def prediction(self) -> Prediction:
        return "flow"

    @property
    def schedule(self) -> Schedule:
        return Schedule.between(0.5 / (self.steps - 1), (self.steps - 1) / 2)

    def scales(self, level: Tensor, timestep: Tensor) -> Scales:
        kept = 1 / (1 + level)  # 1 − t
        t = level * kept
        return Scales(kept, -t, kept, self.steps * t)
