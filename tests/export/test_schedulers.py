from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler

from fvit.errors import FvitError
from fvit.export.preconditioning import Consistency, Edm, RectifiedFlow, VariancePreserving
from fvit.export.schedulers import READERS, preconditioning_of

SAMPLERS = [name for name in READERS if name[:3] not in ("EDM", "CMS", "Flo")]


def read(name: str, *, fractional: bool = True, **options: Any) -> Any:
    return preconditioning_of({"_class_name": name} | options, fractional=fractional, place="model")


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_the_same_model_has_the_same_schedule(name: str) -> None:
    betas: dict[str, Any] = {"beta_start": 0.0002, "beta_end": 0.01, "beta_schedule": "linear"}
    found = read(name, prediction_type="v_prediction", **betas)
    assert isinstance(found, VariancePreserving)
    assert found.prediction == "v_prediction"
    assert np.allclose(found.schedule.alphas_cumprod, np.cumprod(1 - np.linspace(2e-4, 0.01, 1000)))


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_schedule_that_ends_in_noise_alone_is_served_up_to_the_step_before(
    scheduler: Any, prediction: str
) -> None:
    """Lin et al. 2024, algorithm 1: √ᾱ_t moved and stretched, so that its first value stays and its last is
    0. That step's σ is infinite; every other has its own, and t* stays finite at both ends."""
    made = scheduler(rescale_betas_zero_snr=True, prediction_type=prediction)
    assert made.alphas_cumprod[-1] == 0
    schedule = preconditioning_of(made.config, fractional=True, place="model").schedule
    root = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    assert np.allclose(schedule.alphas_cumprod, expected[:-1], rtol=1e-2, atol=1e-7)
    sigmas = schedule.sigmas
    assert np.isfinite(sigmas).all() and len(sigmas) == 999
    assert schedule.timestep(sigmas[[0, 500, 998]]) == pytest.approx([0, 500, 998])
    with pytest.raises(FvitError, match="outside"):
        schedule.timestep(2 * sigmas[-1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_follows_the_rescaling_to_noise_alone_or_is_refused(name: str) -> None:
    """Some keep the setting of another scheduler's folder and ignore it."""
    try:
        found = read(name, rescale_betas_zero_snr=True).schedule
    except FvitError as error:
        assert "rescale_betas_zero_snr is True, which it ignores" in str(error)
    else:
        expected = read("DDIMScheduler", rescale_betas_zero_snr=True).schedule
        assert np.allclose(found.alphas_cumprod, expected.alphas_cumprod, rtol=1e-3)


def test_a_model_of_integer_steps_gets_integers_up_to_the_last_finite_one() -> None:
    schedule = read("DDPMScheduler", fractional=False, rescale_betas_zero_snr=True).schedule
    t = schedule.timestep(np.geomspace(schedule.sigmas[0], schedule.sigmas[-1], 50))
    assert (t == np.rint(t)).all() and t.max() == 998


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize(("prediction", "negated"), [("epsilon", False), ("v_prediction", True)])
def test_karras_levels_are_read_from_the_scheduler(name: str, prediction: str, negated: bool) -> None:
    found = read(name, sigma_min=0.01, sigma_max=50, sigma_data=1.0, prediction_type=prediction)
    assert found == Edm(lowest=0.01, highest=50.0, data_std=1.0, negated=negated)


def test_a_consistency_models_levels_are_read_and_default_to_the_papers() -> None:
    assert read("CMStochasticIterativeScheduler") == Consistency(lowest=0.002, highest=80.0, data_std=0.5)


def test_a_flow_counts_its_steps_and_shifting_samples_moves_no_time() -> None:
    for options in ({}, {"shift": 3.0}, {"use_dynamic_shifting": True}):
        assert read("FlowMatchEulerDiscreteScheduler", **options) == RectifiedFlow(steps=1000)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ScoreSdeVeScheduler", {}, "has a ScoreSdeVeScheduler, which is not supported: known are DDPM"),
        ("DDPMScheduler", {"prediction_type": "flow"}, "DDPMScheduler: the model predicts 'flow'"),
        ("DDPMScheduler", {"beta_schedule": "round"}, "a DDPMScheduler that cannot be made"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type is continuous"),
        ("EDMEulerScheduler", {"prediction_type": "sample"}, "the model predicts 'sample', where epsilon"),
        ("EDMEulerScheduler", {"sigma_min": 0.0}, "sigma_min 0, sigma_max 80"),
        ("EDMEulerScheduler", {"sigma_data": -1.0}, "sigma_data -1"),
        ("CMStochasticIterativeScheduler", {"sigma_max": 0.001}, "sigma_max 0.001"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas is True"),
        ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 2}, "num_train_timesteps is 2"),
    ],
)
def test_what_is_wrong_with_a_scheduler_is_named(name: str, options: dict[str, Any], message: str) -> None:
    assert hasattr(diffusers, name)
    with pytest.raises(FvitError, match=message) as caught:
        read(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in READERS if name not in SAMPLERS])
def test_a_table_of_integer_steps_cannot_follow_a_family_of_fractions(name: str) -> None:
    with pytest.raises(FvitError, match=f"learned table of integer steps, and its {name}"):
        read(name, fractional=False)
