import numpy as np
import pytest
from numpy.typing import NDArray

from fvit.errors import FvitError
from fvit.runtime.schedule import Schedule

LINEAR: NDArray[np.float64] = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000), dtype=np.float64)


def test_a_timestep_of_the_schedule_is_found_from_its_own_noise() -> None:
    schedule = Schedule(LINEAR)
    for t in (0, 1, 137, 998, 999):
        noise_to_signal = np.sqrt((1 - LINEAR[t]) / LINEAR[t])
        assert schedule.timestep(noise_to_signal / 2) == pytest.approx(t, abs=1e-9)


def test_between_two_steps_the_logarithm_of_the_noise_is_linear() -> None:
    schedule = Schedule(LINEAR)
    low, high = schedule.sigmas[100:102]
    assert schedule.timestep(float(np.sqrt(low * high))) == pytest.approx(100.5)


def test_a_model_without_fractional_steps_gets_the_nearest() -> None:
    schedule = Schedule(LINEAR, fractional=False)
    low, high = np.log(schedule.sigmas[100:102])
    assert schedule.timestep(float(np.exp(0.7 * low + 0.3 * high))) == 100
    assert schedule.timestep(float(np.exp(0.3 * low + 0.7 * high))) == 101


@pytest.mark.parametrize("sigma", [0.001, 100.0, float("nan")])
def test_sigma_outside_the_schedule_names_the_allowed_range(sigma: float) -> None:
    with pytest.raises(FvitError, match=r"between 0\.0050 and 78\.7"):
        Schedule(LINEAR).timestep(sigma)


@pytest.mark.parametrize("products", [[0.9], [0.9, 0.95], [0.9, 0.0], [1.0, 0.5]])
def test_products_that_are_no_schedule_are_refused(products: list[float]) -> None:
    with pytest.raises(FvitError, match="schedule"):
        Schedule(np.array(products))


@pytest.mark.parametrize("fractional", [True, False])
def test_many_levels_are_found_as_each_alone(fractional: bool) -> None:
    schedule = Schedule(LINEAR, fractional)
    levels = np.array([0.12, 0.25, 0.5, 1.0])
    found = schedule.timestep(levels)
    assert found.dtype == np.float64
    assert found.tolist() == [schedule.timestep(float(sigma)) for sigma in levels]
    with pytest.raises(FvitError, match="σ = 100 is outside"):
        schedule.timestep(np.array([0.25, 100.0]))


def test_the_ends_of_a_schedule_are_inside_in_single_precision_too() -> None:
    schedule = Schedule(LINEAR)
    ends = schedule.sigmas[[0, -1]].astype(np.float32)
    assert schedule.timestep(ends).tolist() == [0, pytest.approx(999)]
