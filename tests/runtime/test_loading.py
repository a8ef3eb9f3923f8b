import importlib.util
from pathlib import Path

import pytest

import fvit
from fvit.errors import FvitError
from fvit.runtime import loading
from fvit.runtime.batching import SIZES


def test_a_device_that_cannot_be_used_is_one_clear_line(demo_bundle: Path) -> None:
    """Without PyCUDA it names the package, with it and no GPU the driver's reason; never a traceback."""
    with pytest.raises(FvitError, match="pycuda|GPU"):
        fvit.load(demo_bundle, device="cuda:99")
    with pytest.raises(FvitError, match="tensorrt|pycuda|GPU"):
        fvit.load(demo_bundle, device="tensorrt:99")


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is not None, reason="there may be a GPU")
def test_auto_takes_the_cpu_and_says_why_not_the_others(demo_bundle: Path) -> None:
    vit = fvit.load(demo_bundle, device="auto")
    assert vit.engine["device"] == "cpu"
    assert [reason.partition(":0: ")[0] for reason in vit.passed_over] == ["tensorrt", "ort-tensorrt", "cuda"]
    assert all("pycuda" in reason for reason in vit.passed_over)


@pytest.mark.parametrize("device", ["cuda", "cuda:", "cuda:x", "cuda:0,0", "cuda:0,", "cpu:0", "tpu:0"])
def test_a_device_that_is_none_is_refused_with_those_that_are(demo_bundle: Path, device: str) -> None:
    with pytest.raises(FvitError, match=f"unknown device '{device}': use cpu"):
        fvit.load(demo_bundle, device=device)


def test_the_batch_is_measured_once_and_remembered(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fvit.load(demo_bundle).batch == 32
    found = fvit.load(demo_bundle, batch="auto").batch
    assert found in SIZES

    def measured_again(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(loading, "fastest_batch", measured_again)
    assert fvit.load(demo_bundle, batch="auto").batch == found
