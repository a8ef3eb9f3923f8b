"""What does sharing one model cost and gain: many callers of short requests, alone and beside long ones?

    python -m benchmarks.sharing BUNDLE [--device cpu] [--seconds 30]

Callers of predict(n = 16) that call again as soon as they are answered, 1, 4, 16 and 64 of them; the same
beside four callers of certify(n = 5000); and, alone and beside those four, one caller that calls once a
second. All in one run, each case between two of certify alone, so that a slow minute of the machine meets
both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import fvit
from benchmarks.keeping import publish, write_json
from benchmarks.machine import machine
from fvit.demo.data import compositions

SHORT, LONG = 16, 5000
CALLERS = (1, 4, 16, 64)
LONG_CALLERS = 4
PACE = 1.0
"""Seconds between the calls of the one caller that does not call as fast as it can."""
SETTLE, WARM = 5.0, 1.0
"""Seconds before measuring: by the first the callers of certify are old in the queue; by the second those of
predict, which are never old, run."""


class Load:
    """Callers in threads of their own until told to stop: what each did, and when."""

    def __init__(self, vit: fvit.FaithfulViT, images: list[Any]) -> None:
        self._vit, self._images = vit, images
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._under_way: dict[int, Future[fvit.Certificate]] = {}
        self.latencies: list[float] = []
        self.long_copies = 0

    def start(self, callers: int, work: Callable[[int], None]) -> None:
        for caller in range(callers):
            self._threads.append(threading.Thread(target=work, args=(caller,)))
            self._threads[-1].start()

    def short(self, caller: int) -> None:
        while not self._stop.is_set():
            self._predict(caller)

    def paced(self, caller: int) -> None:
        while not self._stop.wait(PACE):
            self._predict(caller)

    def long(self, caller: int) -> None:
        terms = self._vit.terms(n=LONG)
        picture = self._vit.read(self._images[caller])

        def counted(copies: int) -> None:
            with self._lock:
                self.long_copies += copies

        while not self._stop.is_set():
            growing = self._vit.certifying(picture, terms, on_copies=counted)
            self._under_way[caller] = growing
            wait([growing])

    def measured(self, seconds: float, *, after: float) -> dict[str, Any]:
        """Copies/s of both kinds, and latencies in ms of the short requests."""
        time.sleep(after)
        with self._lock:
            all_before, long_before = self._vit.queue.statistics.copies, self.long_copies
            self.latencies = []
        start = time.perf_counter()
        time.sleep(seconds)
        with self._lock:
            taken = time.perf_counter() - start
            # As the queue counts them: answered requests would leave out what is under way, and many callers
            # are answered all at once.
            rows = self._vit.queue.statistics.copies - all_before
            long = self.long_copies - long_before
            latencies = np.array(self.latencies) * 1e3
        rates = {"short": (rows - long) / taken, "long": long / taken}
        self._stop.set()
        for thread in self._threads:
            while thread.is_alive():
                for growing in list(self._under_way.values()):
                    growing.cancel()
                thread.join(0.1)
        result: dict[str, Any] = {"copies_per_second": rates, "calls": len(latencies)}
        if len(latencies):
            p50, p95, p99 = np.quantile(latencies, (0.5, 0.95, 0.99))
            result |= {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
        return result

    def _predict(self, caller: int) -> None:
        start = time.perf_counter()
        self._vit.predict(self._images[caller % len(self._images)], n=SHORT)
        with self._lock:
            self.latencies.append(time.perf_counter() - start)


def measure(vit: fvit.FaithfulViT, *, seconds: float) -> list[dict[str, Any]]:
    """A row for every case, with the copies/s of certify alone right before and right after it."""
    images = list(compositions(16, seed=80, split="held-out").images)

    def run(short: int = 0, long: int = 0, *, paced: bool = False) -> dict[str, Any]:
        load = Load(vit, images)
        load.start(long, load.long)
        load.start(short, load.paced if paced else load.short)
        return load.measured(seconds, after=SETTLE if long else WARM)

    def certify_alone(callers: int) -> float:
        return float(run(long=callers)["copies_per_second"]["long"])

    rows = []
    for long in (0, LONG_CALLERS):
        alone = [certify_alone(long or 1)]
        for short, paced in (*((callers, False) for callers in CALLERS), (1, True)):
            row = {"short": short, "paced": paced, "long": long} | run(short, long, paced=paced)
            alone.append(certify_alone(long or 1))
            rows.append(row | {"certify_alone": alone[-2:]})
    return rows


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{result['machine']['cpu']} ({result['machine']['instructions']}), {result['device']}, "
        f"{result['precision']} bundle, {result['seconds']:g} s each. Shares are of what certify(n = {LONG}) "
        f"alone reaches right before and after: one caller of it, or {LONG_CALLERS} where they are beside.",
        "",
        f"| callers of predict(n = {SHORT}) | their copies/s | copies/s of certify | certify alone | both | "
        "certify keeps | p50, ms | p95 | p99 | calls |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        rates, alone = row["copies_per_second"], float(np.mean(row["certify_alone"]))
        name = f"{row['short']}{', once a second' * row['paced']}"
        name += f", beside {row['long']} of certify" if row["long"] else ""
        both = "" if row["paced"] and not row["long"] else f"{sum(rates.values()) / alone:.1%}"
        kept = f"{rates['long'] / alone:.0%}" if row["long"] else ""
        times = (f"{row[name]:.0f}" if name in row else "" for name in ("p50_ms", "p95_ms", "p99_ms"))
        lines.append(
            f"| {name} | {rates['short']:.0f} | {rates['long']:.0f} | {alone:.0f} | {both} | {kept} "
            f"| {' | '.join(times)} | {row['calls']} |"
        )
    return "\n".join(lines) + "\n"


def main(
    bundle: Annotated[str, typer.Argument(help="The demo bundle.")],
    device: Annotated[str, typer.Option(help="As fvit.load takes it.")] = "cpu",
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 30.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write it here instead of to benchmarks/results/.")
    ] = None,
) -> None:
    with fvit.load(bundle, device=device) as vit:
        result: dict[str, Any] = {"machine": machine(), "device": device}
        result |= {"precision": vit.bundle.manifest.precision, "seconds": seconds}
        result["rows"] = measure(vit, seconds=seconds)
    if json_file is not None:
        write_json(json_file, result)
        print(markdown(result))
        return
    publish(f"sharing-{device.partition(':')[0]}", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
