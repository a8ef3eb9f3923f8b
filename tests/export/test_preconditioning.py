"""σ ↔ time of every family, and what a perfect network of it must give: closed forms from the papers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fvit.errors import FvitError
from fvit.export.preconditioning import Consistency, Edm, Preconditioning, RectifiedFlow, Scales
from fvit.runtime.schedule import Schedule

EDM = Edm(lowest=0.002, highest=80.0, data_std=0.5)
CONSISTENCY = Consistency(lowest=0.002, highest=80.0, data_std=0.5)
FLOW = RectifiedFlow(steps=1000)


def at(preconditioning: Preconditioning, sigma: list[float]) -> tuple[Tensor, Scales]:
    """Levels s = 2σ in [-1,1], and the scales there, as a graph computes them."""
    levels = torch.tensor(sigma, dtype=torch.float32)
    timestep = torch.tensor(preconditioning.schedule.timestep(levels.numpy()), dtype=torch.float32)
    return 2 * levels, preconditioning.scales(2 * levels, timestep)


def ends_and_between(preconditioning: Preconditioning) -> list[float]:
    lowest, highest = preconditioning.schedule.sigmas
    return [float(lowest), 0.12, 0.25, 1.0, float(highest)]


@pytest.mark.parametrize(
    ("preconditioning", "lowest", "highest"),
    [(EDM, 0.001, 40.0), (CONSISTENCY, 0.001, 40.0), (FLOW, 1 / 1998, 499.5)],
    ids=["edm", "consistency", "flow"],
)
def test_a_family_serves_the_levels_of_its_training_and_no_others(
    preconditioning: Preconditioning, lowest: float, highest: float
) -> None:
    """In units of [0,1] pixels, half of those in [-1,1]."""
    schedule = preconditioning.schedule
    assert schedule.sigmas == pytest.approx([lowest, highest])
    middle = math.sqrt(lowest * highest)
    assert schedule.timestep(np.array([lowest, middle, highest])) == pytest.approx([0, 0.5, 1], abs=1e-9)
    for outside in (0.99 * lowest, 1.01 * highest):
        with pytest.raises(FvitError, match="outside this denoiser's noise schedule"):
            schedule.timestep(outside)


def test_edm_is_told_a_quarter_of_the_logarithm_of_its_level() -> None:
    _, scales = at(EDM, ends_and_between(EDM))
    expected = [math.log(s) / 4 for s in (0.002, 0.24, 0.5, 2.0, 80.0)]
    assert scales.time.tolist() == pytest.approx(expected, rel=1e-5)


def test_edm_keeps_the_networks_input_and_target_at_variance_one() -> None:
    """What table 1 of Karras et al. is made from: for data of variance σ_data², c_in²·(s² + σ_data²) = 1, and
    the target (y − c_skip·x)/c_out has variance ((1 − c_skip)²σ_data² + c_skip²s²)/c_out² = 1."""
    level, scales = at(EDM, ends_and_between(EDM))
    assert torch.allclose(scales.into**2 * (level**2 + 0.25), torch.ones(5))
    rest = (1 - scales.skip) ** 2 * 0.25 + scales.skip**2 * level**2
    assert torch.allclose(rest / scales.out**2, torch.ones(5), rtol=1e-4)


def test_with_v_prediction_the_output_of_edm_counts_the_other_way_round() -> None:
    _, positive = at(EDM, [0.25])
    _, negative = at(Edm(lowest=0.002, highest=80.0, data_std=0.5, negated=True), [0.25])
    assert torch.equal(negative.out, -positive.out)
    assert (negative.skip, negative.into, negative.time) == (positive.skip, positive.into, positive.time)


def test_a_consistency_model_leaves_the_least_noisy_image_as_it_is() -> None:
    level, scales = at(CONSISTENCY, ends_and_between(CONSISTENCY))
    assert float(scales.skip[0]) == 1
    assert float(scales.out[0]) == pytest.approx(0, abs=1e-8)
    assert torch.allclose(scales.into, 1 / torch.sqrt(level**2 + 0.25))
    expected = [250 * math.log(s) for s in (0.002, 0.24, 0.5, 2.0, 80.0)]
    assert scales.time.tolist() == pytest.approx(expected, rel=1e-5)
    above = level[1:] - 0.002
    assert torch.allclose(scales.skip[1:], 0.25 / (above**2 + 0.25))
    assert torch.allclose(scales.out[1:], 0.5 * above / torch.sqrt(level[1:] ** 2 + 0.25))


def test_a_flow_is_told_the_share_of_noise_in_what_it_sees() -> None:
    """t = s/(1+s): step 1 of 1,000 at the least level, 999 at the highest, 500 where s = 1."""
    _, scales = at(FLOW, [1 / 1998, 0.5, 499.5])
    assert scales.time.tolist() == pytest.approx([1, 500, 999], rel=1e-5)
    assert scales.into.tolist() == pytest.approx([0.999, 0.5, 0.001], rel=1e-5)


def test_a_perfect_velocity_gives_the_image_back_at_every_level() -> None:
    sigma = ends_and_between(FLOW)
    level, scales = at(FLOW, sigma)
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.rand(2, 5, 1000, generator=generator, dtype=torch.float64)
    noisy = image + level[:, None] * noise
    denoised = scales.skip[:, None] * noisy + scales.out[:, None] * (noise - image)
    assert torch.allclose(denoised, image, atol=1e-4)


@pytest.mark.parametrize("sigmas", [(0.0, 1.0), (-1.0, 1.0), (0.5, 0.5), (1.0, 0.5), (0.1, math.inf)])
def test_a_range_of_noise_that_is_none_is_refused(sigmas: tuple[float, float]) -> None:
    with pytest.raises(FvitError, match="is no range"):
        Schedule.between(*sigmas)
