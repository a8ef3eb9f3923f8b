"""Plans, built and run: against ONNX Runtime on the CPU."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import fvit
from fvit.errors import FvitError
from fvit.runtime.bundle import open_bundle
from fvit.runtime.host import noisy_copies
from tests.gpu.conftest import BATCH

pytest.importorskip("tensorrt")


@pytest.fixture(scope="module")
def planned(demo_bundle: Path) -> fvit.FaithfulViT:
    from fvit.runtime.gpu.device import Gpu

    Gpu(0).build_plans(open_bundle(demo_bundle), batch=BATCH, workspace=1 << 30)
    return fvit.load(demo_bundle, device="tensorrt:0", batch=BATCH)


def test_plans_equal_the_cpu(vit: fvit.FaithfulViT, planned: fvit.FaithfulViT, samples: list[Path]) -> None:
    noisy = noisy_copies(vit.read(samples[0]).pixels, range(2 * BATCH), sigma=0.25, seed=0)
    results: list[Any] = [each.pipeline(noisy, sigma=0.25) for each in (vit, planned)]
    for one, other in zip(*results, strict=True):
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


def test_a_certificate_from_plans_equals_the_cpus(
    vit: fvit.FaithfulViT, planned: fvit.FaithfulViT, samples: list[Path]
) -> None:
    one, other = (each.certify(samples[0], n=500) for each in (vit, planned))
    assert other.engine["name"] == "tensorrt"
    assert one.class_.index == other.class_.index
    assert set(one.attention.tokens) == set(other.attention.tokens)
    assert other.attention.radius_l2 == pytest.approx(one.attention.radius_l2, abs=0.02)


@pytest.mark.parametrize("said", [None, "auto"])
def test_a_batch_that_is_not_given_is_the_largest_that_has_plans(
    said: Literal["auto"] | None, planned: fvit.FaithfulViT
) -> None:
    assert fvit.load(planned.bundle.folder, device="tensorrt:0", batch=said).batch == BATCH


def test_a_batch_without_a_plan_is_refused(planned: fvit.FaithfulViT) -> None:
    with pytest.raises(FvitError, match=f"fvit-export engine .* --batch {BATCH + 1}"):
        fvit.load(planned.bundle.folder, device="tensorrt:0", batch=BATCH + 1)
