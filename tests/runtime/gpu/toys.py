"""Networks that a test sees through: small, exact, and each row's result from that row alone."""

import ctypes
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.tally import TOTAL, Tally
from fvit.engines.base import Engine, Memory, Tensor
from fvit.runtime.gpu.counter import DeviceCounter
from fvit.runtime.gpu.device import Device
from fvit.runtime.gpu.run import Run
from fvit.runtime.images import Picture
from fvit.runtime.noise import noisy_copies
from fvit.runtime.queue import Batch, Stretch
from fvit.runtime.schedule import Schedule
from tests.runtime.gpu.conftest import HostGpu

SIDE, CLASSES, TOKENS = 10, 5, 20
FLOAT = np.dtype(np.float32)
SCHEDULE = Schedule(np.linspace(0.999, 0.01, 100))

Floats = NDArray[np.float32]


class Toy(Engine):
    """A network on a HostGpu.

    launching: called with the number of rows when a run is put on the stream; done: with the arrays, which it
    may change, when it is done there.
    """

    name = "toy"
    device = "host"

    def __init__(self, gpu: HostGpu, *, fixed: int | None = None) -> None:
        self._gpu = gpu
        self.inputs = tuple(Tensor(t.name, (fixed, *t.shape[1:]), t.dtype) for t in self.inputs)
        self.outputs = tuple(Tensor(t.name, (fixed, *t.shape[1:]), t.dtype) for t in self.outputs)
        self.launching: Callable[[int], None] = lambda rows: None
        self.done: Callable[[dict[str, NDArray[Any]]], None] = lambda arrays: None

    def bind(self, memory: Mapping[str, Memory]) -> Callable[[], None]:
        tensors = {tensor.name: memory[tensor.name] for tensor in (*self.inputs, *self.outputs)}
        rows = memory[self.inputs[0].name].shape[0]

        def work() -> None:
            arrays = {name: on_host(there) for name, there in tensors.items()}
            for name, values in self.run(arrays).items():
                arrays[name][:] = values
            self.done(arrays)

        def execute() -> None:
            self.launching(rows)
            self._gpu.put(work)

        return execute


class Denoiser(Toy):
    inputs = (
        Tensor("noisy", (None, 3, SIDE, SIDE), FLOAT),
        Tensor("sigma", (None,), FLOAT),
        Tensor("timestep", (None,), FLOAT),
    )
    outputs = (Tensor("images", (None, 3, SIDE, SIDE), FLOAT),)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        sigma, timestep = (feeds[name][:, None, None, None] for name in ("sigma", "timestep"))
        return {"images": feeds["noisy"] * (np.float32(1) - sigma) + timestep * np.float32(1e-3)}


class Classifier(Toy):
    inputs = (Tensor("images", (None, 3, SIDE, SIDE), FLOAT),)
    outputs = (Tensor("logits", (None, CLASSES), FLOAT), Tensor("attribution", (None, TOKENS), FLOAT))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        flat = feeds["images"].reshape(-1, 3 * SIDE * SIDE)
        # Rounded, so that there are ties.
        logits = np.abs(flat[:, : 4 * CLASSES].reshape(-1, CLASSES, 4).sum(2)).round(1)
        shares = np.abs(flat[:, -3 * TOKENS :].reshape(-1, TOKENS, 3).sum(2)).round(1) + np.float32(0.1)
        return {"logits": logits, "attribution": shares / shares.sum(1, keepdims=True)}


class OnStream(Engine):
    """An engine of the host, whose bound work goes on a HostGpu's stream."""

    name = "on-stream"
    device = "host"

    def __init__(self, gpu: HostGpu, engine: Engine) -> None:
        self._gpu, self._engine = gpu, engine
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._engine.run(feeds)

    def bind(self, memory: Mapping[str, Memory]) -> Callable[[], None]:
        work = self._engine.bind(memory)
        return lambda: self._gpu.put(work)


class Said(Engine):
    """Says of the rows of each run what it was told, on any Device; outputs by name, [rows, …] each."""

    name = "said"
    device = "host"

    def __init__(self, device: Device, inputs: tuple[Tensor, ...], outputs: dict[str, Floats]) -> None:
        self._device, self._said = device, outputs
        self.inputs = inputs
        self.outputs = tuple(Tensor(name, values.shape, FLOAT) for name, values in outputs.items())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(self._said)

    def bind(self, memory: Mapping[str, Memory]) -> Callable[[], None]:
        def execute() -> None:
            for name, values in self._said.items():
                self._device.upload(values, memory[name])

        return execute


def on_host(memory: Memory) -> NDArray[Any]:
    """The array that lies there."""
    size = memory.dtype.itemsize * math.prod(memory.shape)
    held = (ctypes.c_uint8 * size).from_address(memory.pointer)
    return np.ctypeslib.as_array(held).view(memory.dtype).reshape(memory.shape)


def picture(seed: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, SIDE, SIDE), np.uint8)
    return Picture(pixels, f"{seed}", f"{seed}", f"{seed}", None)


def stretch(
    seed: int,
    copies: range = range(10),
    *,
    sigma: float = 0.25,
    sizes: tuple[int, ...] = (3,),
    betting: bool = False,
    key: int | None = None,
    classes: int = CLASSES,
    tokens: int = TOKENS,
) -> Stretch:
    """Copies of the picture of this seed."""
    tally = Tally(classes, tokens, sizes, betting)
    return Stretch(picture(seed), copies, sigma, (seed << 64) + 7 if key is None else key, tally)


def counted(stretch: Stretch, copies: range, denoiser: Engine, classifier: Engine) -> Tally:
    """What a Counter has to find, one copy after another."""
    tally = stretch.tally.empty()
    sigma = np.full(1, stretch.sigma, np.float32)
    levels = {"sigma": sigma, "timestep": SCHEDULE.timestep(sigma).astype(np.float32)}
    for i in copies:
        noisy = noisy_copies(stretch.picture.pixels, range(i, i + 1), sigma=stretch.sigma, key=stretch.key)
        said = classifier.run(denoiser.run({"noisy": noisy, **levels}))
        tally.add(said["logits"], said["attribution"])
    return tally


def same(one: Tally, other: Tally) -> bool:
    """To the last digit; but that two libraries may round a logarithm to one unit more or less."""
    return (
        one.copies == other.copies
        and all(
            np.array_equal(getattr(one, name), getattr(other, name)) for name in ("counts", "votes", "sums")
        )
        and one.wealth.shape == other.wealth.shape
        and bool((np.abs(one.wealth - other.wealth) <= 2).all())
    )


def drawn(device: Device, batch: Batch, *, rows: int) -> dict[str, Floats]:
    """What one launch makes of a batch: the networks' inputs by name, [rows, …] each."""
    shape = batch[0][0].picture.pixels.shape
    pieces = [(stretch.tally, stretch, copies) for stretch, copies in batch]
    run = Run(pieces, rows=rows, classes=CLASSES, tokens=TOKENS, schedule=SCHEDULE)
    staged = device.page_locked(run.tables.size)
    run.write(staged)
    tables = device.allocate((run.tables.size,), np.uint8)
    device.upload(staged, tables)
    shapes = {"noisy": (rows, *shape), "sigma": (rows,), "timestep": (rows,)}
    inputs = {name: device.allocate(shape, np.float32) for name, shape in shapes.items()}
    size = math.prod(shape)
    device.launch(
        "draw_copies", -(-size // 4), rows, *(memory.pointer for memory in inputs.values()),
        *(run.tables.pointer(name, tables) for name in ("rows", "pictures", "thresholds")), size,
    )  # fmt: skip
    return {name: fetched(device, memory) for name, memory in inputs.items()}


def fetched(device: Device, memory: Memory) -> Floats:
    """float32 values that lie on a device."""
    size = FLOAT.itemsize * math.prod(memory.shape)
    found = device.page_locked(size)
    device.download(memory, found)
    device.wait()
    return found.view(FLOAT).reshape(memory.shape).copy()


def reductions(device: Device, *, rows: int, classes: int, tokens: int) -> list[tuple[Tally, Tally]]:
    """What a device counts of three parts of one batch, and what tallies do: with ties, and the largest value
    that is allowed."""
    rng = np.random.default_rng(rows)
    logits = rng.normal(size=(rows, classes)).astype(np.float32).round(1)
    shares = rng.gamma(0.3, size=(rows, tokens)).astype(np.float32).round(2) + np.float32(0.01)
    attribution = shares / shares.sum(1, keepdims=True)
    attribution[-1] = 0
    attribution[-1, 2] = TOTAL
    networks = (
        Said(device, Denoiser.inputs, {"images": np.zeros((rows, 3, SIDE, SIDE), np.float32)}),
        Said(device, Classifier.inputs, {"logits": logits, "attribution": attribution}),
    )
    counter = DeviceCounter(device, *networks, schedule=SCHEDULE, rows=rows)
    batch: Batch = []
    expected = []
    for first, stop in itertools.pairwise(sorted({0, rows // 3, rows // 2, rows})):
        of = stretch(
            first, sizes=(1, 3, min(10, tokens))[len(batch) :], betting=len(batch) != 1,
            classes=classes, tokens=tokens,
        )  # fmt: skip
        batch.append((of, range(stop - first)))
        expected.append(of.tally.empty())
        expected[-1].add(logits[first:stop], attribution[first:stop])
    found = counter.begin(batch)()
    return [(each, right) for each, right in zip(found, expected, strict=True) if isinstance(each, Tally)]
