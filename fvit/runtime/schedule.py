"""From a noise level σ to the diffusion timestep whose noise it is, and back (DESIGN section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fvit.errors import FvitError


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

    @property
    def sigmas(self) -> NDArray[np.float64]:
        """[T] the pixel-space σ of each integer timestep: √((1−ᾱ_t)/ᾱ_t) / 2."""
        return np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod) / 2

    def timestep(self, sigma: float) -> float:
        """t* with σ_{t*} = 2σ: log-linear between neighbours, or the nearest integer of those two.

        Raises FvitError, naming the allowed range, where σ lies outside the schedule.
        """
        sigmas = self.sigmas
        if not sigmas[0] <= sigma <= sigmas[-1]:
            raise FvitError(
                f"σ = {sigma:g} is outside this denoiser's noise schedule: "
                f"choose σ between {sigmas[0]:.4f} and {sigmas[-1]:.4g}"
            )
        t = float(np.interp(np.log(sigma), np.log(sigmas), np.arange(len(sigmas))))
        return t if self.fractional else float(round(t))
