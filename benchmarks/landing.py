"""Is one caller of certify(n = 1000) as fast as in an older checkout of this project?

    python -m benchmarks.landing CHECKOUT OLD_BUNDLE BUNDLE [OLD_BUNDLE BUNDLE …] [--rounds 9]

Two processes a pair of bundles, each with the package of its own checkout, take turns within every round, so
that a slow minute of the machine meets both. Ratios are of copies a second, and are taken inside each round.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

from benchmarks.keeping import publish
from benchmarks.machine import machine
from fvit.demo.data import compositions

HERE = Path(__file__).parents[1]
N = 1000

CHILD = """
import json, sys, time
import numpy as np
import fvit

vit = fvit.load(sys.argv[1])
image = np.load(sys.argv[2])
precision = vit.bundle.manifest.precision
vit.certify(image, n=int(sys.argv[3]) // 10, seed=0)
print(json.dumps(precision), flush=True)
for seed in sys.stdin:
    start = time.perf_counter()
    certificate = vit.certify(image, n=int(sys.argv[3]), seed=int(seed))
    seconds = time.perf_counter() - start
    drawn = getattr(certificate, "copies_drawn", None) or certificate.copies
    print(json.dumps(drawn / seconds), flush=True)
"""
"""What either package can run: for every line that it reads a certificate, and a line of copies a second."""


class Side:
    """A process of one checkout with its bundle on every core."""

    def __init__(self, checkout: Path, bundle: Path, image: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(bundle.absolute()), str(image), str(N)],
            cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.precision = str(self._answer())

    def certify(self, seed: int) -> float:
        """Copies a second of one certificate."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seed}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def end(self) -> None:
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def compare(old: Side, new: Side, *, rounds: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"old": [], "new": []}
    for seed in track(range(rounds), new.precision):
        turns = [("old", old), ("new", new)]
        for name, side in turns if seed % 2 else reversed(turns):
            rates[name].append(side.certify(seed))
    ratios = np.array(rates["new"]) / np.array(rates["old"])
    return {
        "precision": new.precision,
        "old": float(np.median(rates["old"])),
        "new": float(np.median(rates["new"])),
        "ratio": float(np.median(ratios)),
        "ratio_range": [float(ratios.min()), float(ratios.max())],
    }


def markdown(result: dict[str, Any]) -> str:
    where = result["machine"]
    lines = [
        f"{where['cores']} cores of {where['cpu']}, {result['rounds']} rounds of certify(n = {N:,}) in turn. "
        "Ratio: median over rounds (smallest to largest).",
        "",
        f"| bundle | {result['against']}, copies/s | now, copies/s | ratio |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["ratio_range"]
        lines.append(
            f"| {row['precision']} | {row['old']:.1f} | {row['new']:.1f} "
            f"| {row['ratio']:.3f} ({low:.3f} to {high:.3f}) |"
        )
    return "\n".join(lines) + "\n"


def main(
    checkout: Annotated[Path, typer.Argument(help="A folder with the older version of this project.")],
    bundles: Annotated[list[Path], typer.Argument(help="A bundle of its and the same of ours, by turns.")],
    rounds: Annotated[int, typer.Option(help="Certificates of each side.")] = 9,
) -> None:
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.npy"
        np.save(image, compositions(1, seed=85, split="held-out").images[0])
        for theirs, ours in zip(bundles[::2], bundles[1::2], strict=True):
            sides = Side(checkout, theirs, image), Side(HERE, ours, image)
            rows.append(compare(*sides, rounds=rounds))
            for side in sides:
                side.end()
    result = {"machine": machine(), "against": commit.stdout.strip(), "rounds": rounds, "rows": rows}
    publish("landing", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
