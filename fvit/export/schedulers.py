"""A scheduler of diffusers -> the preconditioning of the model that it belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers

from fvit.errors import FvitError
from fvit.export.preconditioning import Consistency, Edm, Preconditioning, RectifiedFlow, VariancePreserving
from fvit.runtime.schedule import Schedule

LARGEST_ZERO = 1e-6
"""What some schedulers put in the place of an ᾱ of 0."""


def preconditioning_of(config: Mapping[str, Any], *, fractional: bool, place: Path | str) -> Preconditioning:
    """config: of the scheduler, as it lies in a folder; fractional: whether the model takes times between
    integers; place: what messages call the model.

    Raises FvitError, by name, for a scheduler that is not in READERS, one whose values make no schedule, and
    one that does not fit a model of integers.
    """
    name = config.get("_class_name") or "DDPMScheduler"  # older folders do not name it
    if name not in READERS:
        raise FvitError(f"{place} has a {name}, which is not supported: known are {', '.join(READERS)}")
    if not fractional and READERS[name] is not _variance_preserving:
        raise FvitError(f"{place} has a learned table of integer steps, and its {name} gives it fractions")
    try:
        scheduler = getattr(diffusers, name).from_config(config)
    except Exception as error:  # whatever the constructor raises
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FvitError(f"{place} has a {name} that cannot be made ({first})") from error
    try:
        return READERS[name](scheduler, fractional)
    except FvitError as error:
        raise FvitError(f"{place} cannot be used with its {name}: {error}") from error


def _variance_preserving(scheduler: Any, fractional: bool) -> VariancePreserving:
    config = scheduler.config
    for name in ("use_flow_sigmas", "timestep_type"):
        if (value := config.get(name)) not in (None, False, "discrete"):
            raise FvitError(f"{name} is {value}, where a denoiser takes steps of ᾱ_t")
    products = scheduler.alphas_cumprod.double().numpy()
    if config.get("rescale_betas_zero_snr"):
        if products[-1] > LARGEST_ZERO:
            raise FvitError("rescale_betas_zero_snr is True, which it ignores: name DDIMScheduler")
        products = products[:-1]  # the last step is noise alone: its σ is infinite, and nobody can ask for it
    return VariancePreserving(Schedule(products, fractional), config.prediction_type)


def _edm(scheduler: Any, fractional: bool) -> Edm:
    if (prediction := scheduler.config.prediction_type) not in ("epsilon", "v_prediction"):
        raise FvitError(f"the model predicts '{prediction}', where epsilon and v_prediction are known")
    return Edm(**_levels(scheduler.config), negated=prediction == "v_prediction")


def _consistency(scheduler: Any, fractional: bool) -> Consistency:
    return Consistency(**_levels(scheduler.config))


def _flow(scheduler: Any, fractional: bool) -> RectifiedFlow:
    config = scheduler.config
    if config.invert_sigmas:
        raise FvitError("invert_sigmas is True, where time has to run from images to noise")
    if config.num_train_timesteps < 3:
        raise FvitError(f"num_train_timesteps is {config.num_train_timesteps}, where 3 are the fewest")
    return RectifiedFlow(steps=config.num_train_timesteps)


def _levels(config: Any) -> dict[str, float]:
    """What a scheduler of Karras's form says of its levels in [-1,1]."""
    lowest, highest, spread = (float(config[name]) for name in ("sigma_min", "sigma_max", "sigma_data"))
    if not (0 < lowest < highest < math.inf and 0 < spread < math.inf):
        raise FvitError(
            f"sigma_min {lowest:g}, sigma_max {highest:g} and sigma_data {spread:g}, where "
            "0 < sigma_min < sigma_max and 0 < sigma_data are needed"
        )
    return {"lowest": lowest, "highest": highest, "data_std": spread}


READERS: Mapping[str, Callable[[Any, bool], Preconditioning]] = {
    "DDPMScheduler": _variance_preserving,
    "DDIMScheduler": _variance_preserving,
    "PNDMScheduler": _variance_preserving,
    "DPMSolverMultistepScheduler": _variance_preserving,
    "DPMSolverSinglestepScheduler": _variance_preserving,
    "DEISMultistepScheduler": _variance_preserving,
    "UniPCMultistepScheduler": _variance_preserving,
    "EulerDiscreteScheduler": _variance_preserving,
    "EulerAncestralDiscreteScheduler": _variance_preserving,
    "HeunDiscreteScheduler": _variance_preserving,
    "EDMEulerScheduler": _edm,
    "EDMDPMSolverMultistepScheduler": _edm,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "CMStochasticIterativeScheduler": _consistency,
}
"""By class. Ten of them sample from the same models, each in its own way, of which one step takes nothing."""
