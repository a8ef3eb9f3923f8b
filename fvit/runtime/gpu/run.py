"""One run of the networks: what goes to the device for it, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fvit.certificates.bounds import BETS
from fvit.certificates.tally import NO_ATTRIBUTION, NOT_FINITE, Tally
from fvit.engines.base import Memory
from fvit.errors import FvitError
from fvit.runtime.noise import Thresholds, thresholds
from fvit.runtime.queue import Stretch
from fvit.runtime.schedule import Schedule

Piece: TypeAlias = "tuple[Tally, Stretch, range]"
"""Copies of a stretch that one run takes, and the tally that they are added to."""

ROW = np.dtype(
    [
        ("copy", np.uint64), ("key", np.uint64, 2), ("picture", np.uint32), ("thresholds", np.uint32),
        ("steps", np.uint32), ("first", np.int32), ("sigma", np.float32), ("timestep", np.float32),
        ("part", np.uint32),
    ],
    align=True,
)  # fmt: skip
"""One noisy copy, as struct Row of kernels.cu."""

PART = np.dtype([(name, np.uint32) for name in ("votes", "kinds", "wealth", "bets")])
"""Where one piece is counted, as struct Part of kernels.cu."""

ALIGNED = 16


@dataclass(frozen=True)
class Layout:
    """Arrays one after another in one stretch of memory. size: in bytes."""

    arrays: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]]
    size: int

    @staticmethod
    def of(**arrays: tuple[tuple[int, ...], DTypeLike]) -> Layout:
        """Of these shapes and dtypes, in this order."""
        placed, end = {}, 0
        for name, (shape, dtype) in arrays.items():
            kind = np.dtype(dtype)
            placed[name] = (end, shape, kind)
            end += -(-kind.itemsize * math.prod(shape) // ALIGNED) * ALIGNED
        return Layout(placed, end)

    def view(self, name: str, memory: NDArray[np.uint8]) -> NDArray[Any]:
        """The array in memory of the host."""
        offset, shape, kind = self.arrays[name]
        return memory[offset : offset + kind.itemsize * math.prod(shape)].view(kind).reshape(shape)

    def pointer(self, name: str, memory: Memory) -> int:
        """Its address in memory of the device."""
        return memory.pointer + self.arrays[name][0]


class Run:
    """Which copies the rows of the networks are, and where they are counted.

    rows: of the networks; those beyond the pieces' are further copies of the last one, drawn and not counted
    (docs/method.md, section 9). tables: what the kernels read; results: what they write, from zeros.
    """

    def __init__(
        self, pieces: Sequence[Piece], *, rows: int, classes: int, tokens: int, schedule: Schedule
    ) -> None:
        self.rows, self.copies = rows, sum(len(copies) for _, _, copies in pieces)
        self.bets = any(len(tally.wealth) for tally, _, _ in pieces)
        self._pieces, self._classes, self._schedule = pieces, classes, schedule
        self._pictures = list(dict.fromkeys(stretch.picture for _, stretch, _ in pieces))
        self._laws = {sigma: thresholds(sigma) for sigma in dict.fromkeys(s.sigma for _, s, _ in pieces)}
        kinds = [len(tally.sizes) for tally, _, _ in pieces]
        bets = [len(tally.wealth) for tally, _, _ in pieces]
        self._votes, self._wealth = _starts(kinds), _starts(bets)
        size = self._pictures[0].pixels.size
        entries = sum(len(law.table) for law in self._laws.values())
        self.tables = Layout.of(
            rows=((rows,), ROW),
            parts=((len(pieces),), PART),
            sizes=((sum(kinds),), np.uint32),
            bets=(BETS.shape, np.float64),
            thresholds=((entries,), np.uint64),
            pictures=((len(self._pictures), size), np.uint8),
        )
        self.results = Layout.of(
            unfit=((self.copies,), np.int32),
            classes=((self.copies,), np.int32),
            sums=((len(pieces), tokens), np.int64),
            wealth=((sum(bets), tokens), np.int64),
            votes=((sum(kinds), tokens), np.uint32),
        )

    def write(self, memory: NDArray[np.uint8]) -> None:
        """Fill in the tables."""
        self.tables.view("rows", memory)[:] = self._rows()
        parts = self.tables.view("parts", memory)
        parts["votes"], parts["kinds"] = self._votes, [len(tally.sizes) for tally, _, _ in self._pieces]
        parts["wealth"], parts["bets"] = self._wealth, [len(tally.wealth) for tally, _, _ in self._pieces]
        self.tables.view("sizes", memory)[:] = [k for tally, _, _ in self._pieces for k in tally.sizes]
        self.tables.view("bets", memory)[:] = BETS
        laws = [law.table for law in self._laws.values()]
        np.concatenate(laws, out=self.tables.view("thresholds", memory))
        pixels = [picture.pixels.reshape(-1) for picture in self._pictures]
        np.stack(pixels, out=self.tables.view("pictures", memory))

    def _rows(self) -> NDArray[np.void]:
        """[rows] of ROW."""
        laws = list(self._laws.values())
        starts = dict(zip(self._laws, _starts(len(law.table) for law in laws), strict=True))
        pictures = {picture: i for i, picture in enumerate(self._pictures)}
        sigmas = np.array([stretch.sigma for _, stretch, _ in self._pieces], np.float32)
        of_pieces = np.zeros(len(self._pieces), ROW)
        of_pieces["sigma"], of_pieces["timestep"] = sigmas, self._schedule.timestep(sigmas)
        of_pieces["part"] = np.arange(len(self._pieces))
        for row, (_, stretch, _) in zip(of_pieces, self._pieces, strict=True):
            law: Thresholds = self._laws[stretch.sigma]
            row["key"] = stretch.key & (2**64 - 1), stretch.key >> 64
            row["picture"] = pictures[stretch.picture]
            # The last threshold stands for 2⁶⁴, which no word reaches.
            row["thresholds"], row["steps"] = starts[stretch.sigma], len(law.table) - 1
            row["first"] = law.first
        runs = [copies for _, _, copies in self._pieces]
        runs[-1] = range(runs[-1].start, runs[-1].stop + self.rows - self.copies)
        rows = np.repeat(of_pieces, [len(copies) for copies in runs])
        rows["copy"] = np.concatenate([np.arange(c.start, c.stop, dtype=np.uint64) for c in runs])
        return rows

    def read(self, memory: NDArray[np.uint8]) -> dict[int, FvitError]:
        """Add the results to the tallies; those, by id, that Tally.add would refuse, and why."""
        refused: dict[int, FvitError] = {}
        found = {name: self.results.view(name, memory) for name in self.results.arrays}
        row = 0
        for part, (tally, _, copies) in enumerate(self._pieces):
            counted = found["classes"][row : row + len(copies)]
            if unfit := int(found["unfit"][row : row + len(copies)].max(initial=0)):
                refused[id(tally)] = FvitError(NOT_FINITE if unfit & 1 else NO_ATTRIBUTION)
            votes, wealth = self._votes[part], self._wealth[part]
            tally.copies += len(copies)
            tally.counts += np.bincount(counted, minlength=self._classes)
            tally.sums += found["sums"][part]
            tally.votes += found["votes"][votes : votes + len(tally.votes)]
            tally.wealth += found["wealth"][wealth : wealth + len(tally.wealth)]
            row += len(copies)
        return refused


def _starts(lengths: Iterable[int]) -> list[int]:
    """Where each begins when they lie one after another."""
    *starts, _ = accumulate(lengths, initial=0)
    return starts
