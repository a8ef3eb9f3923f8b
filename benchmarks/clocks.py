"""Work in a row, marked after each time; and when a device passed the marks: one clock for each thing that
can say it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fvit.runtime.gpu.device import Gpu, GpuEvent

Run = Callable[[int, Callable[[], None]], None]
"""Does its work so many times, calls the function that it is given after each, and waits for the device."""


def in_a_row(work: Callable[[], object], *, wait: Callable[[], object]) -> Run:
    def run(times: int, mark: Callable[[], None]) -> None:
        for _ in range(times):
            work()
            mark()
        wait()

    return run


class Clock(Protocol):
    def mark(self) -> None:
        """Note now, or on a GPU: when the work that was launched so far is done."""

    def milliseconds(self) -> NDArray[np.float64]:
        """The time between each mark and the next."""


class WallClock:
    """The host's clock, for work that is done when its call returns."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def mark(self) -> None:
        self._seconds.append(time.perf_counter())

    def milliseconds(self) -> NDArray[np.float64]:
        return 1e3 * np.diff(self._seconds)


class EventClock:
    """CUDA events on the stream of a Gpu. Its work must be waited for before the times are read."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._events: list[GpuEvent] = []

    def mark(self) -> None:
        self._events.append(self._gpu.event())

    def milliseconds(self) -> NDArray[np.float64]:
        return np.array([first.milliseconds_to(then) for first, then in itertools.pairwise(self._events)])
