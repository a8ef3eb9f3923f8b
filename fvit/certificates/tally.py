"""What is kept of the noisy copies of one image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.bounds import LogWealth
from fvit.errors import FvitError

Floats = NDArray[np.float32]


@dataclass
class Tally:
    """What is kept of the copies of one image: its size does not depend on how many there were.

    counts [C]: copies of each class. votes [K,N]: copies with token j among their k largest, a row
    for each explanation size in `sizes`. sums, squares [N] float64 and wealth: of the attributions.
    """

    classes: int
    tokens: int
    sizes: tuple[int, ...]
    copies: int = 0
    counts: NDArray[np.int64] = field(init=False)
    votes: NDArray[np.int64] = field(init=False)
    sums: NDArray[np.float64] = field(init=False)
    squares: NDArray[np.float64] = field(init=False)
    wealth: LogWealth = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.classes, np.int64)
        self.votes = np.zeros((len(self.sizes), self.tokens), np.int64)
        self.sums = np.zeros(self.tokens)
        self.squares = np.zeros(self.tokens)
        self.wealth = LogWealth(self.tokens)

    def add(self, logits: Floats, attribution: Floats) -> None:
        """Count a batch: logits [B,C], attribution [B,N]. Ties go to the lower index."""
        if not (np.isfinite(logits).all() and np.isfinite(attribution).all()):
            raise FvitError("the engine returned a value that is not finite: no certificate can rest on it")
        self.copies += len(logits)
        self.counts += np.bincount(logits.argmax(axis=1), minlength=self.classes)
        ranked = np.argsort(-attribution, axis=1, kind="stable")
        for row, k in enumerate(self.sizes):
            self.votes[row] += np.bincount(ranked[:, :k].ravel(), minlength=self.tokens)
        exact = attribution.astype(np.float64)
        # One copy after another: float sums then depend on the copies alone, not on the batches.
        for copy in exact:
            self.sums += copy
            self.squares += copy * copy
        self.wealth.add(exact)

    def empty(self) -> Tally:
        """A tally of the same kind that has counted nothing."""
        return Tally(self.classes, self.tokens, self.sizes)

    def merge(self, other: Tally) -> None:
        """Add what another tally counted of other copies of the same image."""
        self.copies += other.copies
        self.counts += other.counts
        self.votes += other.votes
        self.sums += other.sums
        self.squares += other.squares
        self.wealth.merge(other.wealth)
