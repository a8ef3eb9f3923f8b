"""From a noise level σ to the diffusion timestep whose noise it is (docs/method.md, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fvit.errors import FvitError

ROUNDING = 1e-6
"""By so much, relatively, may a σ in float32 lie outside a schedule whose first or last σ it is."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise schedule of a diffusion model, seen from [0,1] pixel space.

    alphas_cumprod: [T] float64, the products ᾱ_t, strictly decreasing inside (0,1).
    fractional: whether the model takes timesteps between the integers it was trained on.
    Raises FvitError where the products are not a schedule.
    """

    alphas_cumprod: NDArray[np.float64]
    fractional: bool = True

    def __post_init__(self) -> None:
        products = self.alphas_cumprod
        inside = products.ndim == 1 and len(products) >= 2 and bool(np.all((products > 0) & (products < 1)))
        if not inside or not bool(np.all(np.diff(products) < 0)):
            raise FvitError("the noise schedule is unusable: ᾱ_t must fall strictly and stay inside (0, 1)")

    @classmethod
    def between(cls, lowest: float, highest: float) -> Schedule:
        """Two steps, the ends of a range of pixel-space σ: t* runs from 0 to 1 with log σ. For models that
        follow σ itself. Raises FvitError where this is no range."""
        if not 0 < lowest < highest < np.inf:
            raise FvitError(f"σ from {lowest:g} to {highest:g} is no range: it takes 0 < lowest < highest")
        return cls(1 / (1 + 4 * np.array([lowest, highest], np.float64) ** 2))

    @property
    def sigmas(self) -> NDArray[np.float64]:
        """[T] the pixel-space σ of each integer timestep: √((1−ᾱ_t)/ᾱ_t) / 2."""
        return np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod) / 2

    def _inside(self, levels: NDArray[np.float64]) -> NDArray[np.bool_]:
        first, last = self.sigmas[[0, -1]]
        return np.asarray((levels >= first * (1 - ROUNDING)) & (levels <= last * (1 + ROUNDING)))

    def knows(self, sigma: float) -> bool:
        """Whether this pixel-space σ lies in the schedule."""
        return bool(self._inside(np.asarray(sigma, np.float64)))

    def covers(self, lowest: float, highest: float) -> bool:
        """Whether this is a range of pixel-space σ, and all of it is in the schedule."""
        return lowest < highest and self.knows(lowest) and self.knows(highest)

    @overload
    def timestep(self, sigma: float) -> float: ...

    @overload
    def timestep(self, sigma: NDArray[np.floating[Any]]) -> NDArray[np.float64]: ...

    def timestep(self, sigma: float | NDArray[np.floating[Any]]) -> float | NDArray[np.float64]:
        """t* with σ_{t*} = 2σ: log-linear between neighbours, or the nearest integer of those two. A number
        for a number, float64 [B] for [B] levels.

        Raises FvitError, naming the allowed range, where a σ lies outside the schedule.
        """
        levels, sigmas = np.asarray(sigma, np.float64), self.sigmas
        inside = self._inside(levels)
        if not inside.all():
            raise FvitError(
                f"σ = {levels[~inside].flat[0]:g} is outside this denoiser's noise schedule: "
                f"choose σ between {sigmas[0]:.4f} and {sigmas[-1]:.4g}"
            )
        t = np.interp(np.log(levels), np.log(sigmas), np.arange(len(sigmas)))
        t = t if self.fractional else np.rint(t)
        return t if levels.ndim else float(t)
