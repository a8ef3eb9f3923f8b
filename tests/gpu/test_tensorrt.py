"""Plans, built and run: against ONNX Runtime on the CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import fvit
from fvit.errors import FvitError
from fvit.runtime.bundle import open_bundle
from fvit.runtime.gpu.device import Gpu
from fvit.runtime.gpu.plans import build_plans
from fvit.runtime.noise import noisy_copies
from tests.gpu.conftest import BATCH, moved_copies

pytest.importorskip("tensorrt")


@pytest.fixture(scope="module")
def planned(demo_bundle: Path) -> Iterator[fvit.FaithfulViT]:
    build_plans(open_bundle(demo_bundle), Gpu(0), batch=BATCH, workspace=1 << 30)
    with fvit.load(demo_bundle, device="tensorrt:0", batch=BATCH) as loaded:
        yield loaded


def test_plans_equal_the_cpu(vit: fvit.FaithfulViT, planned: fvit.FaithfulViT, samples: list[Path]) -> None:
    """With a σ of its own for every copy, and a last batch that is not full."""
    rows = 2 * BATCH + 1
    noisy = noisy_copies(vit.read(samples[0]).pixels, range(rows), sigma=0.25, key=0)
    sigma = np.linspace(0.2, 0.3, rows, dtype=np.float32)
    results: list[Any] = [each.pipeline(noisy, sigma=sigma) for each in (vit, planned)]
    for one, other in zip(*results, strict=True):
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


def test_a_certificate_from_plans_equals_the_cpus(
    vit: fvit.FaithfulViT, planned: fvit.FaithfulViT, samples: list[Path]
) -> None:
    one, other = (each.certify(samples[0], n=500, seed=0).to_dict() for each in (vit, planned))
    assert other["engine"]["name"] == "tensorrt"
    assert max(moved_copies(one, other)) <= 2
    assert one["class"]["index"] == other["class"]["index"]
    assert set(one["attention"]["tokens"]) == set(other["attention"]["tokens"])
    assert other["attention"]["radius_l2"] == pytest.approx(one["attention"]["radius_l2"], abs=0.02)


@pytest.mark.parametrize("said", [None, "auto"])
def test_a_batch_that_is_not_given_is_the_largest_that_has_plans(
    said: Literal["auto"] | None, planned: fvit.FaithfulViT
) -> None:
    with fvit.load(planned.bundle.folder, device="tensorrt:0", batch=said) as loaded:
        assert loaded.rows == BATCH


def test_a_batch_without_a_plan_is_refused(planned: fvit.FaithfulViT) -> None:
    with pytest.raises(FvitError, match=f"fvit-export engine .* --batch {BATCH + 1}"):
        fvit.load(planned.bundle.folder, device="tensorrt:0", batch=BATCH + 1)
