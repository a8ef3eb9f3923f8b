"""How long does fvit-verify take over many records, and over what is none?

    python -m benchmarks.verifying [--records 10000]

Records of made-up copies (10 classes, 1,000 copies, k = 10), no two alike: votes and means of 64 and of 196
tokens, a file of each. Then 100 MB of random bytes, with and without a JSON object before them. Seconds of
the whole command, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

from benchmarks.keeping import publish
from benchmarks.machine import machine
from fvit.certificates.radii import Aggregate
from fvit.certificates.record import Certificate
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms

COPIES, CLASSES, K = 1000, 10, 10
GARBAGE = 100_000_000


def certificate(number: int, *, aggregate: Aggregate, side: int) -> Certificate:
    """A record that follows, of copies drawn for this number."""
    draw, tokens = np.random.default_rng(number), side * side
    terms = Terms.of(
        sigma=0.25, n=COPIES, alpha=1e-3, k=K, beta=0.8, aggregate=aggregate, seed=number, size=(64, 64)
    )
    tally = Tally(CLASSES, tokens, terms.k, betting=aggregate == "mean")
    strength = draw.gamma(0.5, size=tokens) + 0.05
    attribution = draw.dirichlet(strength * tokens, size=COPIES)
    logits = draw.normal(size=(COPIES, CLASSES)) + 3 * np.eye(CLASSES)[number % CLASSES]
    tally.add(logits.astype(np.float32), attribution.astype(np.float32))
    return Certificate.of(
        tally, terms, image=f"{number}.png", sha256="0" * 64, pixels_sha256="1" * 64,
        labels=[str(index) for index in range(CLASSES)], grid=(side, side),
        engine={"name": "none", "device": "cpu", "precision": "fp32"}, bundle="2" * 64, seconds=0.0,
    )  # fmt: skip


def verified(file: Path) -> dict[str, Any]:
    """Seconds of fvit-verify, its exit status and the last line that it said."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", "from fvit.commands import verify; verify()", file],
        capture_output=True, text=True,
    )  # fmt: skip
    said = (done.stdout + done.stderr).strip().splitlines()
    return {"seconds": time.perf_counter() - start, "status": done.returncode, "said": said[-1]}


def markdown(result: dict[str, Any]) -> str:
    where = result["machine"]
    lines = [
        f"{where['cores']} cores of {where['cpu']} ({where['instructions']}); fvit-verify as a command.",
        "",
        "| file | seconds | exit status | last line |",
        "|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        lines.append(f"| {name} | {row['seconds']:.1f} | {row['status']} | {row['said']} |")
    return "\n".join(lines) + "\n"


def main(records: Annotated[int, typer.Option(help="Of each kind.")] = 10_000) -> None:
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "certificates.jsonl"
        kinds: list[tuple[Aggregate, int]] = [("vote", 8), ("vote", 14), ("mean", 8), ("mean", 14)]
        for aggregate, side in kinds:
            with file.open("w") as opened:
                for number in track(range(records), f"{aggregate}, {side * side} tokens"):
                    made = certificate(number, aggregate=aggregate, side=side)
                    opened.write(json.dumps(made.to_dict()) + "\n")
            rows[f"{records:,} records, {aggregate}s of {side * side} tokens"] = verified(file)
        garbage = np.random.default_rng(0).bytes(GARBAGE)
        for name, first in (("100 MB of random bytes", b""), ("the same after an empty object", b"{}\n")):
            file.write_bytes(first + garbage)
            found = verified(file)
            found["said"] = found["said"].replace(str(file), "FILE")
            rows[name] = found
    result = {"machine": machine(), "rows": rows}
    publish("verifying", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
