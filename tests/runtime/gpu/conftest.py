import ctypes
import shutil
import struct
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from fvit.engines.base import Memory
from fvit.errors import OutOfMemory
from fvit.runtime.gpu import kernels
from fvit.runtime.gpu.context import KERNELS, geometry


class HostGpu:
    """A Device whose memory is the host's, and whose kernels are their own source, built for the host and
    launched as on a GPU (host_kernels.cpp). Its stream does nothing until somebody waits for it.

    It notes what it is asked for, and fails as it is told: it has no memory for more than most_rows copies,
    and is lost.
    """

    name = "host"

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.launches: list[str] = []
        self.transfers: list[tuple[str, int]] = []
        self.captures, self.most_rows, self.lost = 0, 2**31, False
        self._stream: list[Callable[[], object]] = []
        self._allocated: list[weakref.ref[NDArray[np.uint8]]] = []

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def allocations(self) -> int:
        """How many are not dropped."""
        return sum(array() is not None for array in self._allocated)

    def put(self, work: Callable[[], object]) -> None:
        """On the stream."""
        self._stream.append(work)

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Memory:
        if len(shape) == 4 and shape[0] > self.most_rows:
            raise OutOfMemory("the device is full")
        array = self.page_locked(max(1, np.dtype(dtype).itemsize * int(np.prod(shape))))
        return Memory(array.ctypes.data, shape, np.dtype(dtype), array)

    def page_locked(self, size: int) -> NDArray[np.uint8]:
        array = np.full(size, 0xFF, np.uint8)  # nothing may be read before it is written
        self._allocated.append(weakref.ref(array))
        return array

    def upload(self, values: NDArray[Any], memory: Memory) -> None:
        self.transfers.append(("up", values.nbytes))
        self.put(lambda: ctypes.memmove(memory.pointer, values.ctypes.data, values.nbytes))

    def download(self, memory: Memory, values: NDArray[Any]) -> None:
        self.transfers.append(("down", values.nbytes))
        self.put(lambda: ctypes.memmove(values.ctypes.data, memory.pointer, values.nbytes))

    def clear(self, memory: Memory, size: int) -> None:
        self.put(lambda: ctypes.memset(memory.pointer, 0, size))

    def launch(self, kernel: str, columns: int, rows: int, *arguments: object) -> None:
        self.launches.append(kernel)
        grid, block = geometry(kernel, columns, rows)
        packed = struct.pack(KERNELS[kernel][0], *arguments)
        sizes = [ctypes.c_uint(size) for size in (*grid, *block[:2])]

        def run() -> None:
            assert self.library.launch_kernel(kernel.encode(), *sizes, packed, ctypes.c_size_t(len(packed)))

        self.put(run)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        work()
        return work

    def event(self) -> "HostEvent":
        event = HostEvent(self)
        self.put(event.passed)
        return event

    def step(self) -> bool:
        """Do what is first on the stream; False where nothing is."""
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")
        if self._stream:
            self._stream.pop(0)()
            return True
        return False

    def wait(self) -> None:
        while self.step():
            pass


class HostEvent:
    def __init__(self, gpu: HostGpu) -> None:
        self._gpu, self._passed = gpu, False

    def passed(self) -> None:
        self._passed = True

    def wait(self) -> None:
        while not self._passed:
            assert self._gpu.step()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels, built for the host."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    built = tmp_path_factory.mktemp("kernels") / "kernels.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"]
    source = Path(__file__).with_name("host_kernels.cpp")
    subprocess.run(["g++", *flags, f"-I{kernels.SOURCE.parent}", "-o", built, source], check=True)
    return ctypes.CDLL(str(built))


@pytest.fixture
def gpu(library: ctypes.CDLL) -> HostGpu:
    return HostGpu(library)
