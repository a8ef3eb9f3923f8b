"""What may be asked, how much of it, and how fast."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fvit.runtime.queue import Queue
from fvit.service.problems import Problem


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request. pixels: of its image, before it is decoded. n: copies of one image. seconds:
    of one refinement. waiting: rows of a model's queue that wait for a device. requests, copies: a minute
    and key, None for as many as there are."""

    body: int
    pixels: int
    n: int
    seconds: float
    waiting: int
    requests: int | None = None
    copies: int | None = None

    def check_copies(self, n: int) -> None:
        """Raise the Problem of a request that can never be served."""
        most = min(self.n, self.waiting, self.copies or self.n)
        if n > most:
            raise Problem(422, "over-limit", f"n = {n}: this service takes up to {most} copies of an image")


def check_waiting(queue: Queue, rows: int, *, most: int) -> None:
    """Raise the Problem of a request whose rows would be more than so many that wait for a device.

    Retry-After is when the queue, at the rate that it has had, will have room for them.
    """
    found = queue.statistics
    if found.devices == 0:
        raise Problem(503, "engine-failed", "no device of this model is left: ask another", retry_after=60)
    over = found.waiting + rows - most
    if over > 0:
        raise Problem(
            429,
            "busy",
            f"{found.waiting:,} copies are waiting, which leaves no room for {rows:,} more: ask again later",
            retry_after=over / found.rate if found.rate else 1,
        )


@dataclass
class Bucket:
    """An allowance of so much a minute, that is full at first and may be overdrawn afterwards."""

    a_minute: float
    level: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self.at = self.a_minute, time.monotonic()

    def seconds_until(self, amount: float) -> float:
        """How long until so much is there."""
        now = time.monotonic()
        self.level = min(self.a_minute, self.level + (now - self.at) * self.a_minute / 60)
        self.at = now
        return max(0.0, (amount - self.level) / self.a_minute * 60)


class Meter:
    """What every key has asked of late."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests: dict[str, Bucket] = {}
        self._copies: dict[str, Bucket] = {}

    def take(self, key: str, *, copies: int) -> None:
        """One request of so many copies; raises the Problem of one too many."""
        taken = []
        for what, amount, most, buckets in (
            ("requests", 1, self._limits.requests, self._requests),
            ("copies", copies, self._limits.copies, self._copies),
        ):
            if most is None:
                continue
            bucket = buckets.setdefault(key, Bucket(most))
            if (seconds := bucket.seconds_until(amount)) > 0:
                raise Problem(
                    429,
                    "over-limit",
                    f"this key may ask for {most:,} {what} a minute: ask again later",
                    retry_after=seconds,
                )
            taken.append((bucket, amount))
        for bucket, amount in taken:
            bucket.level -= amount

    def add(self, key: str, *, copies: int) -> None:
        """So many copies more than were taken were drawn; fewer, where negative."""
        if key in self._copies:
            self._copies[key].level -= copies
