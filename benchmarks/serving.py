"""What does HTTP cost: the queue in process, fvit-serve, and LitServe around the same model?

    python -m benchmarks.serving BUNDLE [--litserve PYTHON] [--seconds 30]

Clients of predict(n = 16) that ask again as soon as they are answered, 1, 8, 32 and 128 of them; then 8
beside 4 clients of certify(n = 5000); then the time to the first certificate of a refinement on an idle
machine. All in one run on one machine, clients and server sharing its cores. --litserve: the interpreter of
an environment with litserve and fvit (pip install litserve fvit); left out unless told.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import fvit
from benchmarks.callers import SAMPLES, Connection, started, until
from benchmarks.keeping import publish
from benchmarks.machine import machine

SHORT, LONG, BESIDE = 16, 5000, 4
SETTLING = 2.0
"""Seconds before anything is measured."""

FIRST = 20
"""Refinements that the time to the first certificate is the median of."""

BODIES = [sample.read_bytes() for sample in SAMPLES]

Ask = Callable[[int, str, int], Awaitable[None]]
"""A caller's request: (caller, kind, n)."""


async def measured(ask: Ask, *, short: int, long: int, seconds: float) -> dict[str, Any]:
    """Copies/s of the short requests, and their latencies in ms; those that are still open at the end count
    with what they have taken so far."""
    latencies: list[tuple[float, float]] = []
    under_way: dict[int, float] = {}

    async def call(caller: int, kind: str, n: int) -> None:
        while True:
            start = time.perf_counter()
            if kind == "predict":
                under_way[caller] = start
            await ask(caller, kind, n)
            if kind == "predict":
                latencies.append((start, time.perf_counter() - start))

    tasks = [asyncio.ensure_future(call(caller, "predict", SHORT)) for caller in range(short)]
    tasks += [asyncio.ensure_future(call(short + caller, "certify", LONG)) for caller in range(long)]
    await asyncio.sleep(SETTLING)
    begin = time.perf_counter()
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    end = time.perf_counter()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in done:
        task.result()
    counted = [each for start, each in latencies if start + each >= begin]
    result: dict[str, Any] = {
        "copies_per_second": SHORT * len(counted) / (end - begin),
        "calls": len(counted),
    }
    all_of_them = np.array([*counted, *(end - start for start in under_way.values())])
    if len(all_of_them):
        quantiles = np.quantile(all_of_them * 1e3, (0.5, 0.95, 0.99))
        result |= dict(zip(("p50_ms", "p95_ms", "p99_ms"), quantiles.tolist(), strict=True))
    return result


async def cases(ask: Ask, clients: list[int], *, seconds: float) -> dict[str, Any]:
    found = {str(short): await measured(ask, short=short, long=0, seconds=seconds) for short in clients}
    found["mixed"] = await measured(ask, short=8, long=BESIDE, seconds=seconds)
    return found


def in_process(bundle: str, clients: list[int], *, seconds: float) -> dict[str, Any]:
    """The queue, called from coroutines."""

    async def run(vit: fvit.FaithfulViT) -> dict[str, Any]:
        pictures = [vit.read(sample) for sample in SAMPLES]

        async def ask(caller: int, kind: str, n: int) -> None:
            picture = pictures[caller % len(pictures)]
            await (vit.predict_async if kind == "predict" else vit.certify_async)(picture, n=n)

        found = await cases(ask, clients, seconds=seconds)
        firsts = []
        for _ in range(FIRST):
            start = time.perf_counter()
            async for _ in vit.refine_async(pictures[0]):
                firsts.append(time.perf_counter() - start)
                break
        return found | {"first_ms": 1e3 * float(np.median(firsts))}

    with fvit.load(bundle) as vit:
        return asyncio.run(run(vit))


def served(bundle: str, clients: list[int], *, seconds: float) -> dict[str, Any]:
    """fvit-serve."""

    async def run(port: int) -> dict[str, Any]:
        connections: dict[int, Connection] = {}

        async def ask(caller: int, kind: str, n: int) -> None:
            connection = connections.setdefault(caller, Connection(port))
            try:
                status, said = await connection.post(f"/v1/{kind}?n={n}", BODIES[caller % len(BODIES)])
            except asyncio.CancelledError:
                connection.close()
                raise
            assert status == 200, said

        found = await cases(ask, clients, seconds=seconds)
        firsts = []
        for _ in range(FIRST):
            start = time.perf_counter()
            async for _ in Connection(port).lines("/v1/refine", BODIES[0]):
                firsts.append(time.perf_counter() - start)
                break
        return found | {"first_ms": 1e3 * float(np.median(firsts))}

    command = [sys.executable, "-c", "from fvit.commands import serve; serve()", bundle, "--port", "0"]
    process, port = started(command)
    assert process.stdout is not None
    threading.Thread(target=process.stdout.read, daemon=True).start()  # its log
    try:
        return asyncio.run(run(port))
    finally:
        process.terminate()
        process.wait()


def by_litserve(python: Path, bundle: str, clients: list[int], *, seconds: float) -> dict[str, Any]:
    """LitServe."""

    async def run(port: int) -> dict[str, Any]:
        connections: dict[int, Connection] = {}
        texts = [base64.b64encode(body).decode() for body in BODIES]

        async def ask(caller: int, kind: str, n: int) -> None:
            connection = connections.setdefault(caller, Connection(port))
            body = json.dumps({"image": texts[caller % len(texts)], "kind": kind, "n": n}).encode()
            try:
                status, said = await connection.post("/predict", body, kind="application/json")
            except asyncio.CancelledError:
                connection.close()
                raise
            assert status == 200, said

        await until(lambda: ask(0, "predict", SHORT), seconds=120)
        return await cases(ask, clients, seconds=seconds)

    with _free_port() as port:
        pass
    script = Path(__file__).with_name("litserving.py")
    process = subprocess.Popen(
        [python, script, bundle, str(port)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return asyncio.run(run(port))
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers would first finish what they have
        process.wait()


@contextmanager
def _free_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def markdown(result: dict[str, Any]) -> str:
    ways, ceiling = result["ways"], result["ways"]["queue in process"]
    lines = [
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores, shared by clients and server; "
        f"predict(n = {SHORT}); mixed: 8 clients of it beside {BESIDE} of certify(n = {LONG}).",
        "",
        "| way | clients | copies/s of predict | of the queue's | p50, ms | p95 | p99 | calls |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, found in ways.items():
        for clients, case in found.items():
            if clients == "first_ms":
                continue
            share = case["copies_per_second"] / max(ceiling[clients]["copies_per_second"], 1e-9)
            times = " | ".join(
                f"{case[name]:.0f}" if name in case else "–" for name in ("p50_ms", "p95_ms", "p99_ms")
            )
            lines.append(
                f"| {way} | {clients} | {case['copies_per_second']:.0f} | {share:.0%} | {times} "
                f"| {case['calls']} |"
            )
    firsts = [f"{found['first_ms']:.0f} ms {way}" for way, found in ways.items() if "first_ms" in found]
    return "\n".join([*lines, "", f"First certificate of a refinement, median: {', '.join(firsts)}."]) + "\n"


def main(
    bundle: Annotated[str, typer.Argument(help="The demo bundle.")],
    litserve: Annotated[Path | None, typer.Option(help="A Python with litserve and fvit.")] = None,
    clients: Annotated[list[int] | None, typer.Option(help="How many; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 30.0,
) -> None:
    counts = clients or [1, 8, 32, 128]
    ways = {"queue in process": in_process(bundle, counts, seconds=seconds)}
    ways["fvit-serve"] = served(bundle, counts, seconds=seconds)
    if litserve is not None:
        ways["LitServe"] = by_litserve(litserve, bundle, counts, seconds=seconds)
    result = {"machine": machine(), "seconds": seconds, "ways": ways}
    publish("serving", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
