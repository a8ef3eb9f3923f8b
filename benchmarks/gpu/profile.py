"""Where does the time of a batch go on a GPU: drawing, networks, counting, transfers, or nothing at all?

    python -m benchmarks.gpu.profile BUNDLE [--device tensorrt:0] [--batch 256] [--json FILE]

CUDA events before and after each thing that is put on the stream, over batches in a row as the queue has
them. What lies between two things is the device waiting for the host. Each event is itself a little work: the
sum is longer than without.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from numpy.typing import NDArray

from benchmarks.keeping import tell
from benchmarks.latency import WORKSPACE, stretch
from fvit.engines.base import Memory
from fvit.errors import OutOfMemory
from fvit.runtime.bundle import open_bundle
from fvit.runtime.gpu.counter import DeviceCounter
from fvit.runtime.gpu.device import Gpu, GpuEvent
from fvit.runtime.gpu.plans import build_plans, open_engines

WAITING = "waiting for the host"
ROOMS = {
    "draw": ("draw_copies",),
    "networks": ("denoiser", "classifier"),
    "reduce": ("find_classes", "count_tokens", "add_wealth"),
    "transfers": ("upload", "clear", "download"),
    "waiting": (WAITING,),
}
"""What each thing belongs to."""


class WatchedGpu(Gpu):
    """A Gpu that notes when each thing on its stream begins and ends. spans: name, begin and end of each."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.spans: list[tuple[str, GpuEvent, GpuEvent]] = []

    def watched(self, name: str, work: Callable[[], None]) -> None:
        before = self.event()
        work()
        self.spans.append((name, before, self.event()))

    def upload(self, values: NDArray[Any], memory: Memory) -> None:
        self.watched("upload", lambda: super(WatchedGpu, self).upload(values, memory))

    def download(self, memory: Memory, values: NDArray[Any]) -> None:
        self.watched("download", lambda: super(WatchedGpu, self).download(memory, values))

    def clear(self, memory: Memory, size: int) -> None:
        self.watched("clear", lambda: super(WatchedGpu, self).clear(memory, size))

    def launch(self, kernel: str, columns: int, rows: int, *arguments: object) -> None:
        self.watched(kernel, lambda: super(WatchedGpu, self).launch(kernel, columns, rows, *arguments))


def shares(spans: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """The share of the whole time that each name has, and what nothing has.

    spans: (name, begin, end), one after another, in any unit of time.
    """
    taken: dict[str, float] = {WAITING: 0.0}
    first = last = None
    for name, begin, end in spans:
        first = begin if first is None else first
        taken[WAITING] += 0.0 if last is None else begin - last
        taken[name] = taken.get(name, 0.0) + end - begin
        last = end
    if first is None or last is None or last == first:
        return {}
    return {name: value / (last - first) for name, value in taken.items()}


def by_room(found: dict[str, float]) -> dict[str, float]:
    """The shares of ROOMS from those of their parts."""
    return {room: sum(found.get(name, 0.0) for name in names) for room, names in ROOMS.items()}


def profile(bundle: str, *, device: str, batch: int, batches: int) -> dict[str, Any]:
    """Milliseconds of a batch, and the shares of what it consists of."""
    kind, _, index = device.partition(":")
    opened, gpu = open_bundle(bundle), WatchedGpu(int(index))
    if kind == "tensorrt":
        build_plans(opened, gpu, batch=batch, workspace=WORKSPACE)
    engines = open_engines(opened, gpu, device=device, batch=batch if kind == "tensorrt" else None)
    counter = DeviceCounter(gpu, *engines, schedule=opened.manifest.schedule, rows=batch)

    def run(times: int) -> None:
        begun: deque[Callable[[], object]] = deque()
        for i in range(times):
            copies = range(i * batch, (i + 1) * batch)
            begun.append(counter.begin([(stretch(opened, copies), copies)]))
            if len(begun) > counter.ahead:
                begun.popleft()()
        for finish in begun:
            finish()

    run(2)  # allocates, chooses algorithms
    if counter.rows < batch:
        raise OutOfMemory(f"{gpu.name} has no memory for {batch} copies at once")
    launches = []
    for name, engine in zip(("denoiser", "classifier"), counter.engines, strict=True):
        work = engine.bind(counter.memory)
        launches.append((name, gpu.captured(work) if engine.capturable else work))

    def networks() -> None:
        for name, launch in launches:
            gpu.watched(name, launch)

    counter.networks = networks
    run(3)
    gpu.spans.clear()
    run(batches)
    gpu.wait()
    origin = gpu.spans[0][1]
    spans = [
        (name, origin.milliseconds_to(begin), origin.milliseconds_to(end)) for name, begin, end in gpu.spans
    ]
    found = shares(spans)
    return {
        "device": device, "gpu": gpu.name, "precision": opened.manifest.precision, "batch": batch,
        "milliseconds": spans[-1][2] / batches, "shares": found, "rooms": by_room(found),
    }  # fmt: skip


def main(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    device: Annotated[str, typer.Option(help="cuda:0 or tensorrt:0.")] = "tensorrt:0",
    batch: Annotated[int, typer.Option(help="Copies at once.")] = 256,
    batches: Annotated[int, typer.Option(help="That are watched.")] = 50,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write it here.")] = None,
) -> None:
    tell(profile(bundle, device=device, batch=batch, batches=batches), file=json_file)


if __name__ == "__main__":
    typer.run(main)
