"""Draws, runs the networks and counts on one GPU: copies and what the networks say of them stay there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from fvit.certificates.tally import TOTAL, UNIT, Tally
from fvit.engines.base import Engine, Memory
from fvit.errors import DeviceLost, FvitError, OutOfMemory
from fvit.runtime.gpu.device import Bytes, Device
from fvit.runtime.gpu.run import Piece, Run
from fvit.runtime.queue import Batch
from fvit.runtime.schedule import Schedule


class DeviceCounter:
    """A Counter on a device, with its engines, which work on the device's stream.

    Where memory runs out, it goes on with half as many rows at once (`rows` says how many), which changes no
    result (docs/method.md, section 9). Nothing on the device outlives a batch but room; one stream keeps a
    batch from touching the room before the one before it is done.

    device, engines, memory (the engines' inputs and outputs by name, `rows` rows each) and networks (what
    runs both engines on it) are public for measuring: networks may be replaced by a call that runs it.
    """

    ahead = 1

    def __init__(
        self, device: Device, denoiser: Engine, classifier: Engine, *, schedule: Schedule, rows: int
    ) -> None:
        """rows: as many as a batch has at most, made up to a multiple of what the graphs take.

        Raises OutOfMemory where the fewest do not fit, FvitError where the graphs cannot be used.
        """
        if rows < 1:
            raise FvitError(f"batch = {rows}: a batch holds at least one copy")
        self.device = device
        self.engines: tuple[Engine, ...] = (denoiser, classifier)
        self.memory: dict[str, Memory] = {}
        self.networks: Callable[[], None] = _nothing
        self._schedule = schedule
        self._tensors = {
            each.name: each for engine in self.engines for each in (*engine.inputs, *engine.outputs)
        }
        # A graph of a fixed batch runs several times; what it lacks at the end is nobody's copy.
        self._whole = math.lcm(*(each.shape[0] or 1 for each in self._tensors.values()))
        self.rows = -(-rows // self._whole) * self._whole
        self._classes, self._tokens = (
            _fixed(self._tensors[name].shape)[0] for name in ("logits", "attribution")
        )
        self._rooms: dict[str, Memory] = {}
        self._idle: list[tuple[Bytes, Bytes]] = []
        with self._explained():
            self._place()

    @property
    def grain(self) -> int:
        """The networks are bound to all rows."""
        return self.rows

    def begin(self, batch: Batch) -> Callable[[], Sequence[Tally | FvitError]]:
        """As Counter.begin. A batch of more than `rows` copies goes in several runs."""
        tallies = [stretch.tally.empty() for stretch, _ in batch]
        refused: dict[int, FvitError] = {}
        rest: list[Piece] = [(tally, *part) for tally, part in zip(tallies, batch, strict=True)]
        finish = _nothing
        with self._explained():
            while rest:
                finish()
                finish = _nothing
                now, later = _split(rest, self.rows)
                try:
                    finish = self._start(now, refused)
                except OutOfMemory:
                    self._halve()
                    self._place()
                else:
                    rest = later
        return partial(self._finished, finish, tallies, refused)

    def close(self) -> None:
        with suppress(Exception):  # a device that is lost has nothing to wait for
            self.device.wait()
        self.networks, self.engines = _nothing, ()
        self.memory, self._rooms, self._idle = {}, {}, []

    def _start(self, pieces: list[Piece], refused: dict[int, FvitError]) -> Callable[[], None]:
        """Put one run on the stream; the call that is returned waits for it and adds to the tallies, and to
        what is refused of them."""
        run = Run(pieces, rows=self.rows, classes=self._classes, tokens=self._tokens, schedule=self._schedule)
        tables, results = self._room("tables", run.tables.size), self._room("results", run.results.size)
        staged, fetched = staging = self._staging(run.tables.size, run.results.size)
        run.write(staged)
        self.device.upload(staged[: run.tables.size], tables)
        self.device.clear(results, run.results.size)
        self._draw(run, tables)
        self.networks()
        self._reduce(run, tables, results)
        self.device.download(results, fetched[: run.results.size])
        event = self.device.event()

        def finish() -> None:
            event.wait()
            self._idle.append(staging)
            refused.update(run.read(fetched))

        return finish

    def _draw(self, run: Run, tables: Memory) -> None:
        noisy, sigma, timestep = (self.memory[name].pointer for name in ("noisy", "sigma", "timestep"))
        rows, thresholds, pictures = (
            run.tables.pointer(name, tables) for name in ("rows", "thresholds", "pictures")
        )
        size = math.prod(self.memory["noisy"].shape[1:])
        self.device.launch(
            "draw_copies", -(-size // 4), run.rows,
            noisy, sigma, timestep, rows, pictures, thresholds, size,
        )  # fmt: skip

    def _reduce(self, run: Run, tables: Memory, results: Memory) -> None:
        logits, attribution = (self.memory[name].pointer for name in ("logits", "attribution"))
        rows, parts, sizes, bets = (
            run.tables.pointer(name, tables) for name in ("rows", "parts", "sizes", "bets")
        )
        unfit, classes, sums, wealth, votes = (
            run.results.pointer(name, results) for name in ("unfit", "classes", "sums", "wealth", "votes")
        )
        self.device.launch("find_classes", 1, run.copies, logits, self._classes, classes, unfit)
        self.device.launch(
            "count_tokens", self._tokens, run.copies,
            attribution, self._tokens, rows, parts, sizes, votes, sums, unfit, UNIT, TOTAL,
        )  # fmt: skip
        if run.bets:
            self.device.launch(
                "add_wealth", self._tokens, run.copies,
                attribution, self._tokens, rows, parts, bets, wealth, UNIT,
            )  # fmt: skip

    def _finished(
        self, finish: Callable[[], None], tallies: list[Tally], refused: dict[int, FvitError]
    ) -> list[Tally | FvitError]:
        with self._explained():
            finish()
        return [refused.get(id(tally), tally) for tally in tallies]

    def _room(self, name: str, size: int) -> Memory:
        """On the device, for at least so many bytes."""
        if name not in self._rooms or self._rooms[name].shape[0] < size:
            self.device.wait()  # what works on the old room
            self._rooms.pop(name, None)
            self._rooms[name] = self.device.allocate((_rounded(size),), "uint8")
        return self._rooms[name]

    def _staging(self, up: int, down: int) -> tuple[Bytes, Bytes]:
        """On the host, for at least so many bytes each way: one for each run that is not finished."""
        while self._idle:
            staged, fetched = self._idle.pop()
            if staged.size >= up and fetched.size >= down:
                return staged, fetched
        return self.device.page_locked(_rounded(up)), self.device.page_locked(_rounded(down))

    def _place(self) -> None:
        """Allocate, for as many rows as fit, and bind the engines to it."""
        while not self._fits():
            self._halve()

    def _fits(self) -> bool:
        """Allocate for `rows` rows and bind; False where that is too much."""
        try:
            for name, tensor in self._tensors.items():
                self.memory[name] = self.device.allocate((self.rows, *_fixed(tensor.shape)), tensor.dtype)
                self.device.clear(
                    self.memory[name], math.prod(self.memory[name].shape) * tensor.dtype.itemsize
                )
            work = partial(_one_after_another, [engine.bind(self.memory) for engine in self.engines])
            capturable = all(engine.capturable for engine in self.engines)
            self.networks = self.device.captured(work) if capturable else work
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
        # What was bound goes, once it is done, before what is smaller comes.
        self.device.wait()
        self.networks, self.memory = _nothing, {}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever a driver or an engine raises becomes one of our errors."""
        try:
            yield
        except Exception as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            try:
                self.device.wait()
            except Exception:
                raise DeviceLost(f"{self.device.name} has failed for good: {said}") from error
            if isinstance(error, FvitError):
                raise
            raise FvitError(f"{self.device.name} could not count these copies: {said}") from error


def _nothing() -> None:
    """Networks that are bound to nothing; a run that was not begun."""


def _one_after_another(work: list[Callable[[], None]]) -> None:
    for each in work:
        each()


def _split(pieces: list[Piece], rows: int) -> tuple[list[Piece], list[Piece]]:
    """The first so many rows, and the others."""
    now: list[Piece] = []
    for i, (tally, stretch, copies) in enumerate(pieces):
        if len(copies) > rows:
            now.append((tally, stretch, copies[:rows]))
            return [piece for piece in now if piece[2]], [(tally, stretch, copies[rows:]), *pieces[i + 1 :]]
        now.append((tally, stretch, copies))
        rows -= len(copies)
    return now, []


def _fixed(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """The dimensions after the batch."""
    sides = tuple(side for side in shape[1:] if side is not None)
    if len(sides) != len(shape) - 1:
        raise FvitError("a graph leaves more than its batch open: export it again")
    return sides


def _rounded(size: int) -> int:
    """Up to a power of 2, so that it seldom has to grow again."""
    return 1 << (size - 1).bit_length()
