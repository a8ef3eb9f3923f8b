"""fvit-serve with little patience, on devices that fail when a picture tells them to.

A picture of one grey level: 1 fails its first batch; 2 loses the device that it comes to.
"""

from typing import Any

from fvit.commands import serve
from fvit.errors import DeviceLost
from fvit.runtime.host import HostCounter
from fvit.runtime.queue import Batch
from fvit.service import asked, life, streams

FAILS_ONCE, LOSES_THE_DEVICE = 1, 2

begin = HostCounter.begin
failed: set[bytes] = set()


def failing(counter: HostCounter, batch: Batch) -> Any:
    for stretch, _ in batch:
        pixels = stretch.picture.pixels
        if (pixels == LOSES_THE_DEVICE).all():
            raise DeviceLost("the device has fallen off the bus")
        if (pixels == FAILS_ONCE).all() and not failed:
            failed.add(b"")
            raise RuntimeError("a kernel failed at once")
    return begin(counter, batch)


if __name__ == "__main__":
    HostCounter.begin = failing  # type: ignore[method-assign,assignment,unused-ignore]
    asked.BODY_SECONDS = life.HEAD_SECONDS = 1.0
    streams.BEAT = 0.05
    serve()
