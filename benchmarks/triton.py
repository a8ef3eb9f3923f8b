"""What does Triton cost: the queue in process, and a tritonserver with the model around it, over gRPC?

    make triton && python -m benchmarks.triton BUNDLE [--seconds 30]

Clients of predict(n = 16) that ask again as soon as they are answered, 1 and 16 of them, alone and beside 4
clients of certify(n = 5000). Over gRPC each client has a stream of its own; with `decoupled: false` in the
model's configuration it asks by plain infer. All in one run on one machine, clients and server sharing its
cores.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer

import fvit
from benchmarks.callers import SAMPLES
from benchmarks.keeping import publish
from benchmarks.machine import machine
from benchmarks.serving import BODIES, LONG, SHORT, Ask, measured
from fvit.extras import require
from fvit.triton.repository import CONFIG, write_repository
from tests.triton.server import Triton

CASES = {"1": (1, 0), "16": (16, 0), "1, beside 4 of certify": (1, 4), "16, beside 4 of certify": (16, 4)}
"""Clients of predict and of certify."""


async def cases(ask: Ask, *, seconds: float) -> dict[str, Any]:
    return {
        name: await measured(ask, short=short, long=long, seconds=seconds)
        for name, (short, long) in CASES.items()
    }


def in_process(bundle: str, *, seconds: float) -> dict[str, Any]:
    """The queue, called from coroutines."""

    async def run(vit: fvit.FaithfulViT) -> dict[str, Any]:
        pictures = [vit.read(sample) for sample in SAMPLES]

        async def ask(caller: int, kind: str, n: int) -> None:
            picture = pictures[caller % len(pictures)]
            await (vit.predict_async if kind == "predict" else vit.certify_async)(picture, n=n)

        return await cases(ask, seconds=seconds)

    with fvit.load(bundle) as vit:
        return asyncio.run(run(vit))


class Caller:
    """A gRPC stream that is asked one thing after the other."""

    def __init__(self, client: Any) -> None:
        self._asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answers = client.stream_infer(self._requests())

    async def ask(self, tensors: list[Any]) -> None:
        await self._asked.put({"model_name": "fvit", "inputs": tensors})
        try:
            _, error = await anext(self._answers)
        except asyncio.CancelledError:
            self._answers.cancel()
            raise
        assert error is None, error

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await self._asked.get()


def by_triton(bundle: str, *, decoupled: bool, seconds: float) -> dict[str, Any]:
    """A tritonserver. decoupled: whether over streams, or by plain infer."""
    grpc = require("tritonclient.grpc.aio", extra="dev", purpose="this benchmark")
    from tests.triton.clients import inputs

    async def run(port: int) -> dict[str, Any]:
        async with grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            callers: dict[int, Caller] = {}

            async def ask(caller: int, kind: str, n: int) -> None:
                tensors = inputs(image=BODIES[caller % len(BODIES)], task=kind, n=n)
                if decoupled:
                    if caller not in callers:
                        callers[caller] = Caller(client)
                    await callers[caller].ask(tensors)
                else:
                    await client.infer("fvit", tensors)

            found = {}
            for name, (short, long) in CASES.items():
                found[name] = await measured(ask, short=short, long=long, seconds=seconds)
                callers.clear()
            return found

    with tempfile.TemporaryDirectory() as folder:
        model = write_repository(bundle, Path(folder) / "models")
        if not decoupled:
            config = model / CONFIG
            config.write_text(config.read_text().replace("decoupled: true", "decoupled: false"))
        server = Triton(model.parent)
        try:
            return asyncio.run(run(server.grpc))
        finally:
            server.stop()


def markdown(result: dict[str, Any]) -> str:
    ways = result["ways"]
    of_queue = ways["queue in process"]
    lines = [
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores, shared by clients and server, "
        f"{result['precision']} bundle; predict(n = {SHORT}), certify(n = {LONG}); windows of "
        f"{result['seconds']:g} s.",
        "",
        "| way | clients of predict | their copies/s | of the queue's | p50, ms | p95 | p99 | calls |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, found in ways.items():
        for name, case in found.items():
            share = case["copies_per_second"] / max(of_queue[name]["copies_per_second"], 1e-9)
            lines.append(
                f"| {way} | {name} | {case['copies_per_second']:.0f} | {share:.0%} | {case['p50_ms']:.0f} "
                f"| {case['p95_ms']:.0f} | {case['p99_ms']:.0f} | {case['calls']} |"
            )
    beside = [
        f"{found['1, beside 4 of certify']['p95_ms'] / found['1']['p95_ms']:.1f} ({way})"
        for way, found in ways.items()
    ]
    return (
        "\n".join([*lines, "", f"p95 of one client beside 4 of certify, of alone: {', '.join(beside)}."])
        + "\n"
    )


def main(
    bundle: Annotated[str, typer.Argument(help="The demo bundle.")],
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 30.0,
) -> None:
    with fvit.load(bundle) as vit:
        precision = vit.bundle.manifest.precision
    ways = {
        "queue in process": in_process(bundle, seconds=seconds),
        "Triton, gRPC streams": by_triton(bundle, decoupled=True, seconds=seconds),
        "Triton, plain infer over gRPC": by_triton(bundle, decoupled=False, seconds=seconds),
    }
    result = {"machine": machine(), "precision": precision, "seconds": seconds, "ways": ways}
    publish("triton", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
