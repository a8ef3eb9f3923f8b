"""Does the service stay right and small under mixed load with faults?

    python -m benchmarks.soak BUNDLE [--minutes 20] [--callers 12]

Callers on loopback, each of which draws its next request from a seed: predictions, certificates, decisions,
deadlines and refinements; and clients that leave, stop half-way, send what is no image, what is no request,
what is too large. Afterwards every answer is computed again, without the service, from its own seed. Answers
that differ are wrong; requests without a documented answer are lost. The server's memory, threads and
descriptors are read every few seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

import fvit
from benchmarks.callers import SAMPLES, Connection, started
from benchmarks.keeping import publish
from benchmarks.machine import machine
from fvit.certificates.record import Certificate
from fvit.certificates.verify import verify

EVERY = 5.0
"""Seconds between two readings of the server's memory."""

SETTLING = 120.0
"""Seconds after which the server's memory counts."""

MOST = 1_000_000
"""Requests, at the most."""

BODIES = [sample.read_bytes() for sample in SAMPLES]


@dataclass
class Found:
    """answers: (image, kind, JSON). asked, statuses: how many of what. lost: what was not answered so."""

    answers: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    readings: list[tuple[float, dict[str, float]]] = field(default_factory=list)


REQUESTS: dict[str, tuple[float, str, tuple[int, ...]]] = {
    "predict": (10, "/v1/predict?n=16", (200,)),
    "certify": (2, "/v1/certify?n=120", (200,)),
    "decide": (2, "/v1/certify?n=400&radius=0.1", (200,)),
    "several": (1, "/v1/certify?n=150&k=10&k=5&sigma=0.5", (200,)),
    "deadline": (1, "/v1/certify?n=2000", (200, 503)),
    "refine": (1, "/v1/refine?n=100", (200,)),
    "leave": (1, "/v1/refine", (200,)),
    "vanish": (1, "/v1/certify?n=2000", ()),
    "half": (1, "/v1/predict", ()),
    "no image": (1, "/v1/predict", (422,)),
    "spoilt": (1, "/v1/predict?n=16", (200, 422)),
    "no terms": (1, "/v1/certify?n=1", (422,)),
    "nowhere": (0.5, "/v1/../etc/passwd", (404,)),
    "too large": (0.2, "/v1/predict", (413,)),
}
"""Of each kind: how often beside the others, where, and the statuses that answer it."""


async def ask(connection: Connection, kind: str, rng: random.Random, found: Found) -> None:
    """One request, and what becomes of it."""
    _, path, good = REQUESTS[kind]
    image = rng.randrange(len(BODIES))
    body = BODIES[image]
    if kind in ("refine", "leave"):
        last = None
        async for line in connection.lines(path, body):
            last = json.loads(line)
            if kind == "leave":
                break
        if last is None or "type" in last:
            raise ConnectionError(f"a stream ended with {last}")
        found.answers.append((image, kind, last))
        found.statuses[f"{kind} 200"] += 1
        return
    if kind in ("vanish", "half"):
        length = len(body) + (100 if kind == "half" else 0)
        await connection.abandon(path, body, length=length, seconds=rng.random())
        return
    if kind == "no image":
        body = rng.randbytes(1000)
    elif kind == "too large":
        body = bytes(20 << 20)
    elif kind == "spoilt":
        spoilt = bytearray(body)
        spoilt[rng.randrange(len(spoilt))] ^= 1 + rng.randrange(255)
        body = bytes(spoilt)
    headers = {"Fvit-Deadline": "1"} if kind == "deadline" else {}
    status, said = await connection.post(path, body, headers=headers)
    found.statuses[f"{kind} {status}"] += 1
    if status not in good:
        found.lost.append(f"{kind}: {status} {said[:200]!r}")
    elif status == 200 and kind != "spoilt":
        found.answers.append((image, kind, json.loads(said)))


async def caller(number: int, port: int, end: float, found: Found) -> None:
    rng, connection = random.Random(number), Connection(port)
    kinds, weights = list(REQUESTS), [weight for weight, _, _ in REQUESTS.values()]
    while time.monotonic() < end and sum(found.asked.values()) < MOST:
        (kind,) = rng.choices(kinds, weights)
        found.asked[kind] += 1
        try:
            await asyncio.wait_for(ask(connection, kind, rng, found), 120)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            connection.close()
            if kind != "too large":  # the server need not read what it refuses
                found.lost.append(f"{kind}: {type(error).__name__} {error}")
    connection.close()


async def read(process: int, end: float, found: Found) -> None:
    start = time.monotonic()
    while time.monotonic() < end:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        reading = {
            "megabytes": int(status["VmRSS"].split()[0]) * 1024 / 1e6,
            "threads": float(status["Threads"]),
            "descriptors": float(len(list(Path(f"/proc/{process}/fd").iterdir()))),
        }
        found.readings.append((time.monotonic() - start, reading))
        await asyncio.sleep(EVERY)


def wrong(vit: fvit.FaithfulViT, found: Found) -> list[str]:
    """What the answers have against what this process computes."""
    pictures, differ = [vit.read(sample) for sample in SAMPLES], []
    for image, kind, said in track(found.answers, "checking"):
        picture = pictures[image]
        if said["pixels_sha256"] != picture.pixels_sha256:
            differ.append(f"{kind}: of another image")
        elif kind == "predict":
            own = vit.predict(SAMPLES[image], n=said["n"], sigma=said["sigma"], seed=said["seed"])
            counts = {str(label): int(count) for label, count in enumerate(own.counts) if count}
            if (counts, own.attention.tolist()) != (said["counts"], said["attention"]):
                differ.append(f"{kind}: other counts")
        else:
            terms = Certificate.model_validate(said).terms
            again = vit.recount(picture, terms, copies=said["copies"]).to_dict()
            unlike = [
                name for name in again if name not in ("seconds", "image") and again[name] != said.get(name)
            ]
            differ.extend([f"{kind}: {', '.join(unlike)}"] if unlike else [])
            differ.extend(f"{kind}: {finding}" for finding in verify(said))
    return differ


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores; {result['minutes']:g} minutes, "
        f"{result['callers']} callers, {sum(result['asked'].values()):,} requests.",
        "",
        f"{result['checked']:,} answers computed again: **{len(result['wrong'])} wrong**; "
        f"**{len(result['lost'])} requests lost**; exit status {result['exit']}.",
        "",
        f"| of the server | after {result['settled']:.0f} s | at the end | most after |",
        "|---|---|---|---|",
        *(
            f"| {name} | {first:.0f} | {last:.0f} ({last / first - 1:+.1%}) | {most:.0f} |"
            for name, (first, last, most) in result["server"].items()
        ),
        "",
        "| kind and status | answers |",
        "|---|---|",
        *(f"| {kind} | {count:,} |" for kind, count in sorted(result["statuses"].items())),
    ]
    return "\n".join(lines) + "\n"


def main(
    bundle: Annotated[str, typer.Argument(help="The demo bundle.")],
    minutes: Annotated[float, typer.Option(max=120, help="Of load; checking takes as long again.")] = 20.0,
    callers: Annotated[int, typer.Option(max=256, help="At once.")] = 12,
) -> None:
    found = Found()

    async def run(port: int, process: int) -> None:
        end = time.monotonic() + 60 * minutes
        work = [caller(number, port, end, found) for number in range(callers)]
        await asyncio.gather(read(process, end, found), *work)

    command = [sys.executable, "-c", "from fvit.commands import serve; serve()", bundle, "--port", "0"]
    server, port = started(command)
    assert server.stdout is not None
    log = server.stdout
    threading.Thread(target=lambda: [None for _ in log], daemon=True).start()
    try:
        asyncio.run(run(port, server.pid))
    finally:
        server.terminate()
        status = server.wait(60)
    settled = min(SETTLING, 60 * minutes / 2)
    later = [reading for at, reading in found.readings if at >= settled]
    server_found = {
        name: (later[0][name], later[-1][name], max(each[name] for each in later)) for name in later[0]
    }
    with fvit.load(bundle) as vit:
        differ = wrong(vit, found)
    result = {
        "machine": machine(), "minutes": minutes, "callers": callers, "settled": settled, "exit": status,
        "asked": dict(found.asked), "statuses": dict(found.statuses), "checked": len(found.answers),
        "wrong": differ, "lost": found.lost, "server": server_found, "readings": found.readings,
    }  # fmt: skip
    publish("soak", result, markdown(result))
    raise typer.Exit(1 if differ or found.lost or status else 0)


if __name__ == "__main__":
    typer.run(main)
