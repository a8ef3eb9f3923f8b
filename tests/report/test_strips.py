"""Thumbnails come down to what there is room for."""

import io

import numpy as np
import pytest
from PIL import Image

from fvit.report.strips import STEPS, Step, reduced, step_for


def strip(*, side: int, seed: int = 0) -> bytes:
    """Three panels of one colour each, with noise."""
    noise = np.random.default_rng(seed).normal(scale=40, size=(side, 3, side, 3))
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])[None, :, None]
    pixels = np.clip(colours + noise, 0, 255).astype(np.uint8).reshape(side, 3 * side, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="webp", quality=70)
    return file.getvalue()


def test_what_fits_stays_as_it_is() -> None:
    whole = strip(side=64)
    assert step_for([whole], most=len(whole)) is None
    assert step_for([], most=100) is None


@pytest.mark.parametrize("most", [6000, 3000, 1500, 800])
def test_what_does_not_fit_takes_the_best_step_that_does(most: int) -> None:
    strips = [strip(side=128, seed=seed) for seed in range(3)]
    step = step_for(strips, most=most)
    assert step is not None
    sizes = {each: sum(len(reduced(one, each) or b"") for one in strips) / 3 for each in STEPS}
    assert sizes[step] <= most
    assert all(sizes[better] > most for better in STEPS[: STEPS.index(step)])


@pytest.mark.parametrize("step", STEPS)
def test_a_smaller_strip_has_its_panels(step: Step) -> None:
    made = reduced(strip(side=128), step)
    assert made is not None
    pixels = np.asarray(Image.open(io.BytesIO(made)).convert("RGB"), float)
    assert pixels.shape == (step.side, 3 * step.side, 3)
    for place in range(3):
        inside = pixels[2:-2, place * step.side + 2 : (place + 1) * step.side - 2].mean(axis=(0, 1))
        assert inside.argmax() == place


def test_the_last_step_is_taken_where_none_fits_and_what_cannot_be_read_is_left_out() -> None:
    assert step_for([strip(side=128)], most=10) == STEPS[-1]
    assert reduced(b"RIFF    WEBP" + b"\0" * 100, STEPS[0]) is None
