"""Draw -> denoise -> classify -> accumulate on one GPU: copies and what is counted of them stay there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fvit.certificates.bounds import LogWealth
from fvit.certificates.tally import Tally
from fvit.engines.base import Engine, Memory
from fvit.errors import FvitError, OutOfMemory
from fvit.runtime.host import Batch, Floats, Section, batches
from fvit.runtime.schedule import Schedule


class Device(Protocol):
    """Memory and the kernels of kernels.cu on one stream of one GPU."""

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Memory:
        """Raises OutOfMemory."""

    def upload(self, memory: Memory, values: NDArray[Any]) -> None: ...

    def download(self, memory: Memory) -> NDArray[Any]: ...

    def draw(
        self, noisy: Memory, *, row: int, pixels: Memory, copies: range, sigma: float, seed: int
    ) -> None:
        """Write x + σz of these copies into the rows of noisy [B,3,H,W] from `row` on."""

    def reduce(self, logits: Memory, attribution: Memory, *, rows: range, into: Accumulators) -> None:
        """Add these rows of logits [B,C] and attribution [B,N] to what is counted."""

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """What launches again, as one CUDA graph, all that `work` puts on the stream."""


def placed(values: NDArray[Any], device: Device) -> Memory:
    """A copy of the values on the device. Raises OutOfMemory."""
    memory = device.allocate(values.shape, values.dtype)
    device.upload(memory, values)
    return memory


@dataclass(frozen=True, eq=False)
class Accumulators:
    """A Tally's arrays on the device. counts [C] and votes [K,N] int64; sums, squares [N] and wealth
    [bets,N] float64; sizes [K] uint32 and bets float64 are constants; unfit [1] int32 becomes 1 where
    an engine returned a value that is not finite."""

    counts: Memory
    votes: Memory
    sums: Memory
    squares: Memory
    wealth: Memory
    sizes: Memory
    bets: Memory
    unfit: Memory

    @staticmethod
    def of(tally: Tally, device: Device) -> Accumulators:
        """On the device, with what the tally already holds."""

        return Accumulators(
            counts=placed(tally.counts, device),
            votes=placed(tally.votes, device),
            sums=placed(tally.sums, device),
            squares=placed(tally.squares, device),
            wealth=placed(tally.wealth.logarithms, device),
            sizes=placed(np.array(tally.sizes, np.uint32), device),
            bets=placed(LogWealth.BETS, device),
            unfit=placed(np.zeros(1, np.int32), device),
        )

    def into(self, tally: Tally, device: Device, *, copies: int) -> None:
        """Bring what was counted back into the tally. Raises FvitError for values that are not finite."""
        if device.download(self.unfit)[0]:
            raise FvitError("the engine returned a value that is not finite: no certificate can rest on it")
        tally.copies += copies
        tally.wealth.copies += copies
        tally.counts[:] = device.download(self.counts)
        tally.votes[:] = device.download(self.votes)
        tally.sums[:] = device.download(self.sums)
        tally.squares[:] = device.download(self.squares)
        tally.wealth.logarithms[:] = device.download(self.wealth)


class DeviceSmoother:
    """Does on a device what Smoother does on the host, with the same copies.

    One run at a time: threads that share it take turns. Where memory runs out, it goes on with half as
    many rows at once (`rows` says how many it uses), which changes no result (DESIGN 4.7).
    """

    def __init__(
        self, device: Device, denoiser: Engine, classifier: Engine, *, schedule: Schedule, batch: int
    ) -> None:
        if batch < 1:
            raise FvitError(f"batch = {batch}: a batch holds at least one copy")
        self.device, self.schedule, self.batch = device, schedule, batch
        self._engines = (denoiser, classifier)
        self._networks: Callable[[], None]
        self._turn = Lock()
        self._tensors = [each for engine in self._engines for each in (*engine.inputs, *engine.outputs)]
        # A graph of a fixed batch runs several times; what it lacks at the end is nobody's copy.
        self._whole = math.lcm(*(each.shape[0] for each in self._tensors if each.shape and each.shape[0]))
        self.rows = -(-batch // self._whole) * self._whole
        self._place()

    def _place(self) -> None:
        """Allocate, for as many rows as fit, and bind the engines to it."""
        while not self._fits():
            self._halve()

    def _fits(self) -> bool:
        """Allocate for `rows` rows and bind; False where that is too much."""
        try:
            self._memory = {
                each.name: self.device.allocate(
                    (self.rows, *_fixed(each.shape)) if each.shape else (), each.dtype
                )
                for each in self._tensors
            }
            work = partial(_one_after_another, [engine.bind(self._memory) for engine in self._engines])
            capturable = all(engine.capturable for engine in self._engines)
            self._networks = self.device.captured(work) if capturable else work
        except OutOfMemory:
            return False
        return True

    def _halve(self) -> None:
        if self.rows == self._whole:
            raise OutOfMemory(
                f"the GPU has no memory for {self.rows} copies at once, the fewest that these graphs take: "
                "free some, or build plans for a smaller --batch"
            )
        self.rows = -(-self.rows // 2 // self._whole) * self._whole
        # What was bound goes before what is smaller comes.
        self._networks, self._memory = _nothing, {}

    def run(
        self,
        sections: Iterable[Section],
        *,
        sigma: float,
        seed: int,
        on_copies: Callable[[int], Any] = lambda copies: None,
    ) -> Iterator[Section]:
        """Count every copy of every section; yield each section when it is complete, in order."""
        with self._turn:
            yield from self._run(sections, sigma=sigma, seed=seed, on_copies=on_copies)

    def _run(
        self, sections: Iterable[Section], *, sigma: float, seed: int, on_copies: Callable[[int], Any]
    ) -> Iterator[Section]:
        pictures: dict[int, tuple[Floats, Memory]] = {}
        counted: dict[int, Accumulators] = {}
        self._set_level(sigma)
        for batch in batches(((section, section.copies) for section in sections), self.batch):
            pictures = {id(s.pixels): self._picture(s.pixels, pictures) for s, _ in batch}
            for section, _ in batch:
                if id(section) not in counted:
                    counted[id(section)] = Accumulators.of(section.tally, self.device)
            for part in self._computed(batch, pictures, sigma=sigma, seed=seed):
                row = 0
                for section, copies in part:
                    rows = range(row, row + len(copies))
                    self.device.reduce(
                        self._memory["logits"], self._memory["attribution"], rows=rows,
                        into=counted[id(section)],
                    )  # fmt: skip
                    row = rows.stop
                    on_copies(len(copies))
                    if copies.stop == section.copies.stop:
                        counted.pop(id(section)).into(section.tally, self.device, copies=len(section.copies))
                        yield section

    def _computed(
        self, batch: Batch, pictures: dict[int, tuple[Floats, Memory]], *, sigma: float, seed: int
    ) -> Iterator[Batch]:
        """The batch in as few parts as memory allows; the networks' outputs hold the part yielded."""
        todo = [batch]
        while todo:
            part = todo.pop(0)
            if sum(len(copies) for _, copies in part) > self.rows:
                todo[:0] = batches(part, self.rows)
            elif self._compute(part, pictures, sigma=sigma, seed=seed):
                yield part
            else:
                self._halve()
                self._place()
                self._set_level(sigma)
                todo.insert(0, part)

    def _set_level(self, sigma: float) -> None:
        for name, value in (("sigma", sigma), ("timestep", self.schedule.timestep(sigma))):
            self.device.upload(self._memory[name], np.asarray(value, np.float32))

    def _compute(
        self, part: Batch, pictures: dict[int, tuple[Floats, Memory]], *, sigma: float, seed: int
    ) -> bool:
        """Draw the copies and run the networks; False where memory ran out."""
        row = 0
        for section, copies in part:
            last = section is part[-1][0]
            stop = copies.start + self.rows - row if last else copies.stop
            self.device.draw(
                self._memory["noisy"], row=row, pixels=pictures[id(section.pixels)][1],
                copies=range(copies.start, stop), sigma=sigma, seed=seed,
            )  # fmt: skip
            row += len(copies)
        try:
            self._networks()
        except OutOfMemory:
            return False
        return True

    def _picture(self, pixels: Floats, known: dict[int, tuple[Floats, Memory]]) -> tuple[Floats, Memory]:
        # The array is kept beside its copy, so that its id stays its own.
        if id(pixels) in known:
            return known[id(pixels)]
        return pixels, placed(pixels, self.device)


def _nothing() -> None:
    """Networks that are bound to nothing."""


def _one_after_another(work: list[Callable[[], None]]) -> None:
    for each in work:
        each()


def _fixed(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """The dimensions after the batch."""
    sides = tuple(side for side in shape[1:] if side is not None)
    if len(sides) != len(shape) - 1:
        raise FvitError("a graph leaves more than its batch open: export it again")
    return sides
