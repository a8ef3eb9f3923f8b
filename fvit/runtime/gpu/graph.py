"""CUDA graphs, which PyCUDA does not offer: work that a stream was given once, launched again in one call."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

from fvit.errors import FvitError

THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile is not our business


class CudaGraph:
    """All that `work` puts on a stream of the current context, recorded without being run.

    stream: its address. work must have run once before, so that nothing is set up while it is recorded.
    Raises FvitError where the driver cannot record it.
    """

    def __init__(self, work: Callable[[], None], *, stream: int) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._stream = ctypes.c_void_p(stream)
        graph, runnable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, THREAD_LOCAL)
        try:
            work()
        finally:
            ended = self._cuda.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        if ended:
            raise FvitError(f"the work cannot be captured (cuStreamEndCapture: CUDA error {ended})")
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(runnable), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        self._runnable = runnable
        weakref.finalize(self, self._cuda.cuGraphExecDestroy, runnable).atexit = False

    def launch(self) -> None:
        """Put the recorded work on the stream again."""
        self._call("cuGraphLaunch", self._runnable, self._stream)

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._cuda, name)(*arguments):
            raise FvitError(f"{name} failed with CUDA error {status}")
