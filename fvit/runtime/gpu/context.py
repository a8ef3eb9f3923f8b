"""What a process opens once on a GPU and keeps: its context, and the kernels in it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from fvit.errors import FvitError
from fvit.extras import require
from fvit.runtime.gpu.kernels import cache_folder, compiled

KERNELS = {
    "draw_copies": ("PPPPPPI", (128, 1, 1)),
    "find_classes": ("PIPP", (128, 1, 1)),
    "count_tokens": ("PIPPPPPPdd", (128, 1, 1)),
    "add_wealth": ("PIPPPPd", (128, 1, 1)),
}
"""The types of each kernel's arguments, as struct spells them, and the shape of its blocks."""


def geometry(kernel: str, columns: int, rows: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """The grid and the blocks that cover so many columns, and each row in blocks of its own."""
    _, block = KERNELS[kernel]
    return (-(-columns // block[0]), rows), block


class Context:
    """The primary context of one GPU, current while it is entered, so that ONNX Runtime, TensorRT and torch
    may live beside us in one process; with the kernels of kernels.cu. Made by `opened`."""

    def __init__(self, driver: Any, index: int) -> None:
        device = driver.Device(index)
        self._driver = driver
        self._context = device.retain_primary_context()
        self.name: str = device.name()
        self.capability: tuple[int, int] = device.compute_capability()
        with self:
            cubin = compiled("sm_{}{}".format(*self.capability), cache=cache_folder())
            module = driver.module_from_file(str(cubin))
            self.kernels = {name: module.get_function(name) for name in KERNELS}
            for name, (arguments, _) in KERNELS.items():
                self.kernels[name].prepare(arguments)

    def __enter__(self) -> None:
        self._context.push()

    def __exit__(self, *_: object) -> None:
        self._driver.Context.pop()

    def when_dropped(self, owner: object, release: Callable[[], Any]) -> None:
        """Call `release` in this context when `owner` goes, whichever thread drops it last: PyCUDA by itself
        frees only in the thread that opened the context, and leaks elsewhere."""
        # The driver frees all when a process ends.
        weakref.finalize(owner, _release, self, release).atexit = False


def _release(context: Context, release: Callable[[], Any]) -> None:
    with suppress(Exception), context:  # in a context that is broken nothing is left to be freed
        release()


def opened(index: int) -> Context:
    """The context of this GPU. Raises FvitError where there is none or its kernels cannot be compiled."""
    driver = require("pycuda.driver", extra=None, purpose="running on a GPU")
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise FvitError(f"no GPU can be used: {error}") from error
    if index >= count:
        raise FvitError(f"device cuda:{index}: this machine has {count} GPUs, counted from 0")
    return _context(driver, index)


@cache
def _context(driver: Any, index: int) -> Context:
    return Context(driver, index)
