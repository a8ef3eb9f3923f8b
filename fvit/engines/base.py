"""What every engine offers, and which one serves a device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
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


class Engine(ABC):
    """A compiled graph on one device. `run` may be called from several threads at once."""

    name: str
    device: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @abstractmethod
    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Execute the graph: one array per input name -> one array per output name.

        Every row of a batch is computed from that row alone (DESIGN 4.7).
        """


def open_engine(graph: Path, *, device: str) -> Engine:
    """An engine for this ONNX graph on `device`: "cpu" or "cuda:N".

    Raises FvitError for a device that is unknown or that this installation cannot use.
    """
    from fvit.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, device=device)
