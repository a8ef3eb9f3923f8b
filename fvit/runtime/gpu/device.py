"""One stream of one NVIDIA GPU: memory, transfers and the kernels of kernels.cu, through PyCUDA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fvit.engines.base import Memory
from fvit.errors import FvitError, OutOfMemory
from fvit.extras import require
from fvit.runtime.gpu.context import Context, geometry, opened
from fvit.runtime.gpu.graph import CudaGraph

Bytes = NDArray[np.uint8]


class Event(Protocol):
    """A place among the work on a stream."""

    def wait(self) -> None:
        """Until all work before it is done."""


class Device(AbstractContextManager[None], Protocol):
    """What a Counter needs of a GPU. All work goes on one stream, one after another, and only `wait` and
    events wait for it. Entered, it is the GPU that this thread works on."""

    name: str

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Memory:
        """Memory that is freed when it is dropped. Raises OutOfMemory."""

    def page_locked(self, size: int) -> Bytes:
        """Bytes of the host that transfers need not copy first. Raises OutOfMemory."""

    def upload(self, values: NDArray[Any], memory: Memory) -> None:
        """Start to copy the values to where memory begins; they must not change until it is done."""

    def download(self, memory: Memory, values: NDArray[Any]) -> None:
        """Start to fill the values from where memory begins."""

    def clear(self, memory: Memory, size: int) -> None:
        """Start to set so many bytes to 0."""

    def launch(self, kernel: str, columns: int, rows: int, *arguments: object) -> None:
        """Start a kernel of kernels.cu on so many columns of so many rows."""

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """What launches again, as one CUDA graph, all that `work` puts on the stream; it runs once first."""

    def event(self) -> Event:
        """After all that is on the stream now."""

    def wait(self) -> None:
        """Until nothing is left on the stream. Raises where the device is broken."""


class Gpu:
    """A Device. Raises FvitError where there is no such GPU or its kernels cannot be compiled."""

    def __init__(self, index: int) -> None:
        self._context = opened(index)
        self._driver = require("pycuda.driver", extra=None, purpose="running on a GPU")
        self.name, self.capability = self._context.name, self._context.capability
        with self:
            self._held = [self._driver.Stream()]
        self._context.when_dropped(self, self._held.clear)

    def __enter__(self) -> None:
        self._context.__enter__()

    def __exit__(self, *_: object) -> None:
        self._context.__exit__()

    @property
    def stream(self) -> int:
        """The address of the stream, for engines that work on it."""
        return int(self._held[0].handle)

    def free_bytes(self) -> int:
        """Memory that nobody on this GPU holds."""
        with self:
            free, _ = self._driver.mem_get_info()
        return int(free)

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Memory:
        kind = np.dtype(dtype)
        size = max(1, kind.itemsize * int(np.prod(shape)))  # an empty array still needs an address
        with self:
            try:
                held = self._driver.mem_alloc(size)
            except self._driver.MemoryError as error:
                raise OutOfMemory(f"{self.name} has no {size / 1e6:,.0f} MB left") from error
        return Memory(int(held), shape, kind, _Allocation(self._context, held))

    def page_locked(self, size: int) -> Bytes:
        with self:
            try:
                array: Bytes = self._driver.pagelocked_empty(size, np.uint8)
            except self._driver.MemoryError as error:
                raise OutOfMemory(f"{self.name}: the host can lock no {size / 1e6:,.0f} MB") from error
        self._context.when_dropped(array, array.base.free)  # type: ignore[union-attr]
        return array

    def upload(self, values: NDArray[Any], memory: Memory) -> None:
        with self:
            self._driver.memcpy_htod_async(memory.pointer, values, self._held[0])

    def download(self, memory: Memory, values: NDArray[Any]) -> None:
        with self:
            self._driver.memcpy_dtoh_async(values, memory.pointer, self._held[0])

    def clear(self, memory: Memory, size: int) -> None:
        with self:
            self._driver.memset_d8_async(memory.pointer, 0, size, self._held[0])

    def launch(self, kernel: str, columns: int, rows: int, *arguments: object) -> None:
        grid, block = geometry(kernel, columns, rows)
        with self:
            self._context.kernels[kernel].prepared_async_call(grid, block, self._held[0], *arguments)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        with self:
            work()  # what an engine sets up on its first run cannot be captured
            self.wait()
            try:
                graph = CudaGraph(work, stream=self.stream)
            except OutOfMemory:
                raise
            except FvitError:
                return work
        return partial(self._launch_graph, graph)

    def _launch_graph(self, graph: CudaGraph) -> None:
        with self:
            graph.launch()

    def event(self) -> GpuEvent:
        with self:
            # Whoever waits leaves its core to others.
            event = self._driver.Event(self._driver.event_flags.BLOCKING_SYNC)
            event.record(self._held[0])
        return GpuEvent(self._context, event)

    def wait(self) -> None:
        with self:
            self._held[0].synchronize()


class _Allocation:
    """Keeps memory allocated."""

    def __init__(self, context: Context, held: Any) -> None:
        context.when_dropped(self, held.free)


class GpuEvent:
    """An Event that also tells the time."""

    def __init__(self, context: Context, event: Any) -> None:
        self._context = context
        self._held = [event]
        context.when_dropped(self, self._held.clear)

    def wait(self) -> None:
        with self._context:
            self._held[0].synchronize()

    def milliseconds_to(self, later: GpuEvent) -> float:
        """Of the device, once both are passed."""
        with self._context:
            return float(self._held[0].time_till(later._held[0]))
