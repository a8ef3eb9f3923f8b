import ctypes
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from fvit.engines.base import Memory
from fvit.runtime.gpu import kernels
from fvit.runtime.gpu.device import KERNELS, Gpu, geometry


class HostGpu(Gpu):
    """A Gpu whose memory is the host's, and whose kernels are their own source, built for the host and
    launched as on a GPU (host_kernels.cpp)."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Memory:
        array: NDArray[np.generic] = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8).fill(0xFF)  # nothing may be read before it is written
        return Memory(array.ctypes.data, shape, array.dtype, array)

    def upload(self, memory: Memory, values: NDArray[np.generic]) -> None:
        memory.owner[...] = values

    def download(self, memory: Memory) -> NDArray[np.generic]:
        found: NDArray[np.generic] = memory.owner.copy()
        return found

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def _launch(self, kernel: str, columns: int, rows: int, *arguments: object) -> None:
        grid, block = geometry(kernel, columns, rows)
        packed = struct.pack(KERNELS[kernel][0], *arguments)
        sizes = [ctypes.c_uint(size) for size in (*grid, *block[:2])]
        assert self._library.launch_kernel(kernel.encode(), *sizes, packed, ctypes.c_size_t(len(packed)))


@pytest.fixture(scope="session")
def host_gpu(tmp_path_factory: pytest.TempPathFactory) -> HostGpu:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    built = tmp_path_factory.mktemp("kernels") / "kernels.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"]
    source = Path(__file__).with_name("host_kernels.cpp")
    subprocess.run(["g++", *flags, f"-I{kernels.SOURCE.parent}", "-o", built, source], check=True)
    return HostGpu(ctypes.CDLL(str(built)))
