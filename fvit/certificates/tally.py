"""What is kept of the noisy copies of one image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.bounds import BETS
from fvit.errors import FvitError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

UNIT = 2**30
"""Attributions and logarithms are added up as integers in units of 1/UNIT."""

TOTAL = 1 + 2**-8
"""The most that a copy's attribution may sum to, for what floating point adds to 1."""

NOT_FINITE = "the engine returned a value that is not finite: no certificate can rest on it"
NO_ATTRIBUTION = "the engine returned an attribution that is no distribution over the tokens"


@dataclass
class Tally:
    """What is kept of the copies of one image: its size does not depend on how many there were.

    counts [C]: copies of each class. votes [K,N]: copies with token j among their k largest, a row
    for each explanation size in `sizes`. sums [N]: Σ rint(w·UNIT) of the attributions w. wealth [bets,N]:
    Σ ⌊ln(1 + bet·min(w, 1))·UNIT⌋ for each of BETS where `betting`, which bounds on means need; [0,N]
    elsewhere. Integers all: the order in which copies, batches and devices are added changes nothing.
    """

    classes: int
    tokens: int
    sizes: tuple[int, ...]
    betting: bool = False
    copies: int = 0
    counts: Integers = field(init=False)
    votes: Integers = field(init=False)
    sums: Integers = field(init=False)
    wealth: Integers = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.classes, np.int64)
        self.votes = np.zeros((len(self.sizes), self.tokens), np.int64)
        self.sums = np.zeros(self.tokens, np.int64)
        self.wealth = np.zeros((len(BETS) if self.betting else 0, self.tokens), np.int64)

    def add(self, logits: Floats, attribution: Floats) -> None:
        """Count a batch: logits [B,C], attribution [B,N]. Ties go to the lower index.

        Raises FvitError for values that are not finite, and for attributions that are none: values below
        0 or above TOTAL, copies without any, and where betting also sums above TOTAL.
        """
        if not (np.isfinite(logits).all() and np.isfinite(attribution).all()):
            raise FvitError(NOT_FINITE)
        exact = attribution.astype(np.float64)
        totals = exact.sum(axis=1)
        most = totals if self.betting else exact
        if (exact < 0).any() or (totals <= 0).any() or (most > TOTAL).any():
            raise FvitError(NO_ATTRIBUTION)
        self.copies += len(logits)
        self.counts += np.bincount(logits.argmax(axis=1), minlength=self.classes)
        ranked = np.argsort(-attribution, axis=1, kind="stable")
        for row, k in enumerate(self.sizes):
            self.votes[row] += np.bincount(ranked[:, :k].ravel(), minlength=self.tokens)
        self.sums += np.rint(exact * UNIT).astype(np.int64).sum(axis=0)
        if self.betting:
            factors = np.log1p(BETS[:, None, None] * np.minimum(exact, 1.0))
            self.wealth += np.floor(factors * UNIT).astype(np.int64).sum(axis=1)

    def empty(self) -> Tally:
        """A tally of the same kind that has counted nothing."""
        return Tally(self.classes, self.tokens, self.sizes, self.betting)

    def merge(self, other: Tally) -> None:
        """Add what another tally counted of other copies of the same image."""
        self.copies += other.copies
        self.counts += other.counts
        self.votes += other.votes
        self.sums += other.sums
        self.wealth += other.wealth

    @property
    def mean(self) -> NDArray[np.float64]:
        """[N] the mean attribution; the copies must be at least one."""
        return self.sums / (self.copies * UNIT)
