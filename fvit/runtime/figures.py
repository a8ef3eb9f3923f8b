"""What a queue has done and where it stands, as metrics of whatever server exports them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fvit.runtime.queue import Statistics


@dataclass(frozen=True)
class Figure:
    """A metric by Prometheus's conventions. counts: whether it only grows, which a level does not."""

    name: str
    words: str
    counts: bool
    of: Callable[[Statistics], float]


FIGURES = (
    Figure("fvit_copies_total", "Copies computed.", True, lambda found: found.copies),
    Figure("fvit_batches_total", "Batches begun.", True, lambda found: found.batches),
    Figure("fvit_batch_rows_total", "Rows that batches had room for.", True, lambda found: found.room),
    Figure(
        "fvit_rows_waiting", "Rows wanted and not yet taken by a device.", False, lambda found: found.waiting
    ),
    Figure("fvit_devices", "Devices that work.", False, lambda found: found.devices),
    Figure(
        "fvit_copies_per_second", "Copies a second while any device is at work, of late.", False,
        lambda found: found.rate or 0.0,
    ),
)  # fmt: skip
