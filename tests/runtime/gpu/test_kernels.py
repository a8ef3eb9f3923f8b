"""The CUDA kernels, built for the host and launched as on a GPU, against NumPy; and their compilation by nvcc
and NVRTC where they are."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fvit.certificates.tally import Tally
from fvit.errors import FvitError
from fvit.runtime import noise
from fvit.runtime.gpu import kernels
from fvit.runtime.gpu.counter import Accumulators, placed
from fvit.runtime.gpu.device import KERNELS
from fvit.runtime.host import noisy_copies
from tests.runtime.gpu.conftest import HostGpu

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


def _drawn(
    gpu: HostGpu, pixels: NDArray[np.float32], copies: range, *, sigma: float, seed: int
) -> NDArray[np.float32]:
    noisy = gpu.allocate((1 + len(copies), *pixels.shape), np.float32)
    gpu.draw(noisy, row=1, pixels=placed(pixels, gpu), copies=copies, sigma=sigma, seed=seed)
    drawn = gpu.download(noisy)
    assert np.isnan(drawn[0]).all()
    return drawn[1:].astype(np.float32)


@pytest.mark.parametrize(("seed", "first"), [(0, 0), (2**64 - 1, 5), (123456789012, 2**32 - 3), (7, 2**40)])
def test_noise_equals_numpys(host_gpu: HostGpu, seed: int, first: int) -> None:
    """10⁶ values; the seed's and the index's upper words count."""
    zeros = np.zeros(100_000, np.float32)
    found = _drawn(host_gpu, zeros, range(first, first + 10), sigma=1.0, seed=seed)
    expected = noise.draw(np.arange(first, first + 10), size=zeros.size, seed=seed)
    assert np.abs(found - expected).max() <= 2e-6


def test_noise_is_standard_normal_to_its_tails(host_gpu: HostGpu) -> None:
    values = _drawn(host_gpu, np.zeros(100_000, np.float32), range(40), sigma=1.0, seed=11).astype(np.float64)
    n = values.size
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((values**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96 / n)
    for edge, tail in ((2.0, 0.0227501319), (3.0, 0.0013498980), (4.0, 3.16712418e-05)):
        for beyond in (values > edge, values < -edge):
            assert abs(beyond.mean() - tail) < 5 * np.sqrt(tail / n)


def test_copies_equal_numpys_at_a_size_that_blocks_do_not_divide(host_gpu: HostGpu) -> None:
    pixels = np.random.default_rng(0).random((3, 7, 11), np.float32)
    found = _drawn(host_gpu, pixels, range(3, 9), sigma=0.25, seed=5)
    assert np.abs(found - noisy_copies(pixels, range(3, 9), sigma=0.25, seed=5)).max() <= 1e-6


@pytest.mark.parametrize(("rows", "classes", "tokens"), [(1, 2, 4), (37, 10, 64), (256, 1000, 196)])
def test_reductions_equal_the_tallys(host_gpu: HostGpu, rows: int, classes: int, tokens: int) -> None:
    """Counts, votes, sums and squares to the last bit, ties and values above 1 included; logarithms to the
    rounding of two libraries."""
    rng = np.random.default_rng(rows)
    logits = rng.normal(size=(rows, classes)).astype(np.float32).round(1)
    attribution = (rng.gamma(0.3, size=(rows, tokens)) / 3).round(2).astype(np.float32)
    expected, found = (Tally(classes, tokens, (1, 3, min(10, tokens))) for _ in range(2))
    scores, shares = placed(logits, host_gpu), placed(attribution, host_gpu)
    there = Accumulators.of(found, host_gpu)
    half = rows // 2
    for part in (range(half), range(half, rows)):
        if part:
            expected.add(logits[part.start : part.stop], attribution[part.start : part.stop])
            host_gpu.reduce(scores, shares, rows=part, into=there)
    there.into(found, host_gpu, copies=rows)
    for field in ("counts", "votes", "sums", "squares"):
        assert np.array_equal(getattr(found, field), getattr(expected, field))
    assert np.allclose(found.wealth.logarithms, expected.wealth.logarithms, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("where", ["logits", "attribution"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_noticed(host_gpu: HostGpu, where: str, value: float) -> None:
    values = {"logits": np.zeros((5, 7), np.float32), "attribution": np.full((5, 9), 1 / 9, np.float32)}
    values[where][3, 6] = value
    tally = Tally(7, 9, (2,))
    there = Accumulators.of(tally, host_gpu)
    scores, shares = (placed(values[name], host_gpu) for name in ("logits", "attribution"))
    host_gpu.reduce(scores, shares, rows=range(3), into=there)
    assert host_gpu.download(there.unfit)[0] == 0
    host_gpu.reduce(scores, shares, rows=range(3, 5), into=there)
    with pytest.raises(FvitError, match="not finite"):
        there.into(tally, host_gpu, copies=5)


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90"])
def test_kernels_compile_and_are_kept(architecture: str, tmp_path: Path) -> None:
    cubin = kernels.compiled(architecture, cache=tmp_path)
    assert cubin.read_bytes()[:4] == b"\x7fELF"
    before = cubin.stat().st_mtime_ns
    assert kernels.compiled(architecture, cache=tmp_path) == cubin
    assert cubin.stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [cubin]


@needs_nvcc
def test_an_architecture_that_nvcc_does_not_know_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FvitError, match="sm_1 cannot be compiled") as caught:
        kernels.compiled("sm_1", cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)


@pytest.mark.usefixtures("no_nvcc")
@pytest.mark.skipif(kernels._nvrtc() is None, reason="needs NVRTC")
def test_nvrtc_compiles_where_there_is_no_nvcc(tmp_path: Path) -> None:
    cubin = kernels.compiled("sm_90", cache=tmp_path)
    assert cubin.read_bytes()[:4] == b"\x7fELF"
    assert all(name in cubin.read_bytes() for name in map(str.encode, KERNELS))
    with pytest.raises(FvitError, match="sm_1 cannot be compiled: .*gpu-architecture"):
        kernels.compiled("sm_1", cache=tmp_path)


@pytest.mark.usefixtures("no_nvcc")
def test_no_compiler_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_nvrtc", lambda: None)
    with pytest.raises(FvitError, match="pip install nvidia-cuda-nvrtc .* CUDA toolkit"):
        kernels.compiled("sm_90", cache=tmp_path)
