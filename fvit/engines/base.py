"""What every engine offers."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tensor:
    """One input or output: its name, its shape (None where the batch is free) and its dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Memory:
    """An array that lies on a device: its address there, and what keeps it allocated."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any

    def rows(self, rows: range) -> Memory:
        """A part of the array along its first dimension."""
        row = self.dtype.itemsize * math.prod(self.shape[1:])
        shape = (len(rows), *self.shape[1:])
        return Memory(self.pointer + rows.start * row, shape, self.dtype, self.owner)


GPU_NUMBER = re.compile(r"[0-9]{1,9}")
"""How a device's name ends, behind its colon."""

PLANS = "engines"
"""The folder of a bundle that holds what was built from its graphs for one GPU."""


def weights_file(graph: Path) -> Path:
    """Where the weights of an ONNX graph lie that are too large for its own file."""
    return graph.with_name(graph.name + ".data")


class Engine(ABC):
    """A compiled graph on one device. `run` may be called from several threads at once."""

    name: str
    device: str
    precision: str
    """What the graph is computed in, as records name it."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    portion: int | None = None
    """Rows that a CPU core computes at a time, fewer being filled up; None where it takes any number."""
    capturable = False
    """Whether a bound call only puts work on the stream, so that a CUDA graph can hold it."""

    @abstractmethod
    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Execute the graph: one array per input name -> one array per output name.

        Every row of a batch is computed from that row alone (docs/method.md, section 9).
        """

    @abstractmethod
    def bind(self, memory: Mapping[str, Memory]) -> Callable[[], None]:
        """A call that executes the graph on arrays that lie on the engine's device already.

        memory: every input and output by name; those with dimensions all have one number of rows, a
        multiple of the graph's fixed batch where it has one. The call raises OutOfMemory where the device
        has too little memory for it.
        """
