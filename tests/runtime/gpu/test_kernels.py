"""The CUDA kernels, built for the host and launched as on a GPU, against NumPy; and their compilation by nvcc
and NVRTC where they are."""

import ctypes
import shutil
from pathlib import Path

import numpy as np
import pytest

from fvit.certificates.tally import Tally
from fvit.errors import FvitError
from fvit.runtime.gpu import kernels
from fvit.runtime.gpu.context import KERNELS
from fvit.runtime.gpu.run import PART, ROW, Layout
from fvit.runtime.images import Picture
from fvit.runtime.noise import noisy_copies, thresholds
from fvit.runtime.queue import Batch, Stretch
from tests.runtime.gpu.conftest import HostGpu
from tests.runtime.gpu.toys import CLASSES, SCHEDULE, TOKENS, drawn, reductions, same

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


def _of(shape: tuple[int, int], seed: int, *, sigma: float, key: int, dark: bool = False) -> Stretch:
    pixels = np.random.default_rng(seed).integers(0, 1 if dark else 256, (3, *shape), np.uint8)
    picture = Picture(pixels, f"{seed}", f"{seed}", f"{seed}", None)
    return Stretch(picture, range(0), sigma, key, Tally(CLASSES, TOKENS, ()))


@pytest.mark.parametrize("sigma", [0.12, 0.25, 0.5, 1.0])
def test_ten_million_integers_equal_numpys(gpu: HostGpu, sigma: float) -> None:
    """A quarter of them at each σ; on black, a copy is the integer divided by 255."""
    copies = range(2**32 - 10, 2**32 + 7)
    of = _of((224, 224), 0, sigma=sigma, key=0xFEDCBA9876543210_0123456789ABCDEF, dark=True)
    found = drawn(gpu, [(of, copies)], rows=len(copies))["noisy"]
    assert found.size > 2_500_000
    assert np.array_equal(found, noisy_copies(of.picture.pixels, copies, sigma=sigma, key=of.key))


def test_copies_equal_numpys_whatever_shares_the_batch(gpu: HostGpu) -> None:
    """Several pictures, σ, keys and copies far on; at a size that blocks of four do not divide."""
    one = _of((7, 11), 1, sigma=0.25, key=2**128 - 1)
    batch: Batch = [
        (one, range(3, 9)),
        (_of((7, 11), 2, sigma=0.03, key=0), range(2**63 - 9, 2**63 - 2)),
        (_of((7, 11), 3, sigma=2.5, key=2**64), range(2**40, 2**40 + 1)),
        (one, range(1)),
        (_of((7, 11), 1, sigma=0.5, key=1 << 64), range(5)),
    ]
    rows = sum(len(copies) for _, copies in batch)
    found = drawn(gpu, batch, rows=rows)
    expected = [noisy_copies(of.picture.pixels, part, sigma=of.sigma, key=of.key) for of, part in batch]
    assert np.array_equal(found["noisy"], np.concatenate(expected))
    sigma = np.concatenate([np.full(len(part), of.sigma, np.float32) for of, part in batch])
    assert np.array_equal(found["sigma"], sigma)
    assert np.array_equal(found["timestep"], SCHEDULE.timestep(sigma).astype(np.float32))


@pytest.mark.parametrize("sigma", [0.004, 0.12, 0.25, 0.5, 1.0, 14.0])
def test_integers_are_numpys_at_and_beside_every_threshold(library: ctypes.CDLL, sigma: float) -> None:
    """The smallest and the largest word among them."""
    law = thresholds(sigma)
    near = np.concatenate([law.table, law.table - np.uint64(1), law.table + np.uint64(1)])
    words = np.concatenate([near, np.array([0, 1, 2**64 - 2, 2**64 - 1], np.uint64)])
    found = np.empty(len(words), np.int32)
    library.integers(
        words.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(words)),
        law.table.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint32(len(law.table) - 1),
        ctypes.c_int32(law.first), found.ctypes.data_as(ctypes.c_void_p),
    )  # fmt: skip
    assert np.array_equal(found, law.integers(words))
    assert found.min() == law.first + 1 and found.max() == law.first + len(law.table) - 1


def test_tables_are_laid_out_as_the_kernels_read_them() -> None:
    assert (ROW.itemsize, PART.itemsize) == (56, 16)
    assert ROW.fields is not None
    assert [offset for _, offset, *_ in ROW.fields.values()] == [0, 8, 24, 28, 32, 36, 40, 44, 48]
    layout = Layout.of(one=((3,), np.uint8), none=((0, 5), np.int64), other=((2,), np.float64))
    assert {name: array[0] for name, array in layout.arrays.items()} == {"one": 0, "none": 16, "other": 16}
    assert layout.size == 32


@pytest.mark.parametrize(("rows", "classes", "tokens"), [(1, 2, 4), (37, 10, 64), (256, 1000, 196)])
def test_reductions_equal_the_tallys(gpu: HostGpu, rows: int, classes: int, tokens: int) -> None:
    assert all(same(*pair) for pair in reductions(gpu, rows=rows, classes=classes, tokens=tokens))


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
