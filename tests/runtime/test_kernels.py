"""The CUDA source, built for the host, against NumPy; and its compilation by nvcc where there is one."""

import ctypes
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fvit.errors import FvitError
from fvit.runtime import kernels, noise
from fvit.runtime.bounds import LogWealth
from fvit.runtime.smoother import Tally, noisy_copies
from tests.runtime.conftest import pointer

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


def _drawn(
    host_kernels: ctypes.CDLL, pixels: NDArray[np.float32], copies: range, *, sigma: float, seed: int
) -> NDArray[np.float32]:
    noisy = np.full((len(copies), *pixels.shape), np.nan, np.float32)
    host_kernels.draw_copies(
        pointer(noisy), pointer(pixels), ctypes.c_float(sigma), ctypes.c_uint64(seed),
        ctypes.c_uint64(copies.start), ctypes.c_uint32(len(copies)), ctypes.c_uint32(pixels.size),
    )  # fmt: skip
    return noisy


@pytest.mark.parametrize(("seed", "first"), [(0, 0), (2**64 - 1, 5), (123456789012, 2**32 - 3), (7, 2**40)])
def test_noise_equals_numpys(host_kernels: ctypes.CDLL, seed: int, first: int) -> None:
    """10⁶ values; the seed's and the index's upper words count."""
    zeros = np.zeros(100_000, np.float32)
    found = _drawn(host_kernels, zeros, range(first, first + 10), sigma=1.0, seed=seed)
    expected = noise.draw(np.arange(first, first + 10), size=zeros.size, seed=seed)
    assert np.abs(found - expected).max() <= 2e-6


def test_noise_is_standard_normal_to_its_tails(host_kernels: ctypes.CDLL) -> None:
    values = _drawn(host_kernels, np.zeros(100_000, np.float32), range(40), sigma=1.0, seed=11).astype(
        np.float64
    )
    n = values.size
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((values**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96 / n)
    for edge, tail in ((2.0, 0.0227501319), (3.0, 0.0013498980), (4.0, 3.16712418e-05)):
        for beyond in (values > edge, values < -edge):
            assert abs(beyond.mean() - tail) < 5 * np.sqrt(tail / n)


def test_copies_equal_numpys_at_a_size_that_blocks_do_not_divide(host_kernels: ctypes.CDLL) -> None:
    pixels = np.random.default_rng(0).random((3, 7, 11), np.float32)
    found = _drawn(host_kernels, pixels, range(3, 9), sigma=0.25, seed=5)
    assert np.abs(found - noisy_copies(pixels, range(3, 9), sigma=0.25, seed=5)).max() <= 1e-6


@pytest.mark.parametrize(("rows", "classes", "tokens"), [(1, 2, 4), (37, 10, 64), (256, 1000, 196)])
def test_reductions_equal_the_tallys(host_kernels: ctypes.CDLL, rows: int, classes: int, tokens: int) -> None:
    """Counts, votes, sums and squares to the last bit, ties and values above 1 included."""
    rng = np.random.default_rng(rows)
    logits = rng.normal(size=(rows, classes)).astype(np.float32).round(1)
    attribution = (rng.gamma(0.3, size=(rows, tokens)) / 3).round(2).astype(np.float32)
    sizes = (1, 3, min(10, tokens))
    expected = Tally(classes, tokens, sizes)
    expected.add(logits[: rows // 2], attribution[: rows // 2])
    expected.add(logits[rows // 2 :], attribution[rows // 2 :])

    bets = np.concatenate([LogWealth.LOWER, -LogWealth.UPPER])
    counts, votes = np.zeros(classes, np.uint64), np.zeros((3, tokens), np.uint64)
    sums, squares = np.zeros(tokens), np.zeros(tokens)
    wealth = np.zeros((len(bets), tokens))
    host_kernels.reduce(
        pointer(logits), pointer(attribution), rows, classes, tokens,
        pointer(np.array(sizes, np.uint32)), len(sizes), pointer(bets), len(bets),
        pointer(counts), pointer(votes), pointer(sums), pointer(squares), pointer(wealth),
    )  # fmt: skip
    assert np.array_equal(counts, expected.counts)
    assert np.array_equal(votes, expected.votes)
    assert np.array_equal(sums, expected.sums)
    assert np.array_equal(squares, expected.squares)
    known = LogWealth(tokens)
    known.add(attribution.astype(np.float64))
    assert np.allclose(wealth, known.logarithms, rtol=1e-12, atol=1e-12)


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


def test_a_missing_nvcc_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(FvitError, match="CUDA toolkit"):
        kernels.compiled("sm_90", cache=tmp_path)
