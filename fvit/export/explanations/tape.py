"""What torch computed from one tensor, call by call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Call:
    """One call of torch's functions or tensors' methods; inputs: those of its tensors that depend on the
    tape's root, in the order of the arguments; outputs: its tensors."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        return self.function.__name__


class Tape(TorchFunctionMode):
    """Keeps the calls, while it is entered, whose result depends on `root`, in their order.

    Calls are those that a module's Python code makes (linear, layer_norm, matmul), not the smaller ones
    that torch makes of them.
    """

    def __init__(self, root: Tensor) -> None:
        super().__init__()
        self.calls: list[Call] = []
        # Tensors themselves are kept, too: their ids are their names here and must stay theirs.
        self._dependent = {id(root): root}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        inputs = tuple(t for t in tensors((args, tuple(options.values()))) if id(t) in self._dependent)
        outputs = tuple(tensors(result))
        if inputs and outputs:
            self._dependent |= {id(output): output for output in outputs}
            self.calls.append(Call(func, args, options, inputs, outputs))
        return result


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples and lists, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors(each)
