"""Several GPUs of one machine share the copies of every image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from fvit.errors import FvitError
from fvit.runtime.host import CopyCounter, Section


class SharedSmoother:
    """One worker a device; each counts its own stretch of a section's copies, and the counts are merged.

    Copies are numbered, so who draws them changes nothing: counts and votes equal those of one device,
    sums of attributions do to float64 rounding.
    """

    def __init__(self, smoothers: Sequence[CopyCounter]) -> None:
        self.smoothers, self.batch = smoothers, smoothers[0].batch

    @property
    def rows(self) -> int:
        return min(smoother.rows for smoother in self.smoothers)

    def run(
        self,
        sections: Iterable[Section],
        *,
        sigma: float,
        seed: int,
        on_copies: Callable[[int], Any] = lambda copies: None,
    ) -> Iterator[Section]:
        """Count every copy of every section; yield each section when it is complete, in order."""
        with ThreadPoolExecutor(len(self.smoothers), thread_name_prefix="fvit-gpu") as workers:
            given_up = Event()

            def counted(copies: int) -> None:
                if given_up.is_set():
                    raise FvitError("another device failed, or the run was interrupted")
                on_copies(copies)

            def count(smoother: CopyCounter, part: Section) -> None:
                for _ in smoother.run([part], sigma=sigma, seed=seed, on_copies=counted):
                    pass

            for section in sections:
                parts = [
                    Section(section.pixels, copies, section.tally.empty())
                    for copies in _stretches(section.copies, len(self.smoothers), batch=self.batch)
                ]
                try:
                    list(workers.map(count, self.smoothers, parts))
                except BaseException:
                    given_up.set()
                    raise
                for part in parts:  # always in the order of their copies
                    section.tally.merge(part.tally)
                yield section


def _stretches(copies: range, workers: int, *, batch: int) -> list[range]:
    """The copies in at most `workers` stretches of whole batches, as equal as that allows."""
    total = -(-len(copies) // batch)
    edges = [batch * (total * worker // workers) for worker in range(workers + 1)]
    return [part for first, stop in itertools.pairwise(edges) if (part := copies[first:stop])]
