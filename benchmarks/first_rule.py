"""How many copies would version 0.1 have taken to decide, on the very same copies?

    git worktree add /tmp/first facde04
    python -m benchmarks.outcomes BUNDLE && python -m benchmarks.first_rule /tmp/first BUNDLE

Version 0.1 chose class and tokens from 100 copies, and tested them on the others at looks that double. Its
own code, in a process of its checkout, is shown what benchmarks/outcomes.py kept of every copy, and told that
there are 10,000 in all. Beside it the rule of today.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

from benchmarks.keeping import publish
from benchmarks.outcomes import (
    ALPHA,
    BETA,
    GRID,
    MOST,
    RADII,
    SIGMA,
    WORK,
    K,
    Outcomes,
    asked,
    engine_of,
    kept,
)
from fvit.errors import FvitError
from fvit.runtime.bundle import open_bundle

SELECTION, BATCH = 100, 32
"""Copies that version 0.1 chose from, and its batch, in which it counted."""

CHILD = """
import json, sys
import numpy as np
from fvit.runtime.record import Terms, decide
from fvit.runtime.smoother import Tally

asked = json.loads(sys.argv[1])


def add(tally, outcomes, first, last):
    classes, attribution = outcomes["classes"][first:last], outcomes["attribution"][first:last]
    tally.copies += len(classes)
    tally.counts += np.bincount(classes, minlength=tally.classes)
    ranked = np.argsort(-attribution, axis=1, kind="stable")[:, : tally.sizes[0]]
    tally.votes[0] += np.bincount(ranked.ravel(), minlength=tally.tokens)


for line in sys.stdin:
    outcomes, n0 = dict(np.load(line.strip())), asked["n0"]
    found = []
    for radius in asked["radii"]:
        terms = Terms(
            sigma=asked["sigma"], n0=n0, n=asked["n"], alpha=asked["alpha"], k=(asked["k"],),
            beta=asked["beta"], aggregate="vote", seed=0, radius=radius, batch=asked["batch"],
        )
        selection, estimation = (Tally(asked["classes"], asked["tokens"], terms.k) for _ in range(2))
        add(selection, outcomes, 0, n0)
        for look in terms.checkpoints:
            add(estimation, outcomes, n0 + estimation.copies, n0 + look)
            answer = decide(selection, estimation, terms, radius=radius).answer
            if answer != "undecided":
                break
        found.append((n0 + look, answer))
    print(json.dumps(found), flush=True)
"""
"""What runs in the checkout: for every file of outcomes that it reads of, a line of copies and answers."""

Answers = list[tuple[int, str]]


def now(outcomes: Outcomes) -> Answers:
    """Copies and answer at each radius."""
    found: Answers = []
    for radius in RADII:
        decided = outcomes.decided(asked(radius=radius))
        assert decided is not None  # all copies are there
        found.append((decided[0], decided[1].answer))
    return found


def first(checkout: Path, images: Sequence[Outcomes], *, classes: int) -> Iterator[Answers]:
    """The same by version 0.1."""
    terms = {
        "sigma": SIGMA, "alpha": ALPHA, "k": K, "beta": BETA, "radii": RADII, "n0": SELECTION, "batch": BATCH,
        "n": MOST - SELECTION, "classes": classes, "tokens": GRID[0] * GRID[1],
    }  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(terms)],
            cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        for outcomes in images:
            file = Path(folder) / "outcomes.npz"
            np.savez(file, classes=outcomes.classes, attribution=outcomes.attribution)
            process.stdin.write(f"{file}\n")
            process.stdin.flush()
            yield [(copies, answer) for copies, answer in json.loads(process.stdout.readline())]
        process.stdin.close()


def summary(found: Sequence[tuple[int, str]]) -> dict[str, Any]:
    copies = [copies for copies, _ in found]
    return {
        "median": float(np.median(copies)),
        "90 %": float(np.quantile(copies, 0.9)),
        "answers": Counter(answer for _, answer in found),
    }


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"The same {MOST:,} copies of {result['images']} held-out images, σ = {SIGMA}, k = {K}, β = {BETA}, "
        f"α = {ALPHA}, {result['engine']['name']}, {result['engine']['precision']}: copies until class and "
        f"explanation are decided, at most all. Version 0.1 chooses from the first {SELECTION}, which count.",
        "",
        "| decided at radius | rule | copies, median | 90th percentile | answers |",
        "|---|---|---|---|---|",
    ]
    for radius, rules in result["decisions"].items():
        for rule, of in rules.items():
            answers = ", ".join(f"{count} {answer}" for answer, count in sorted(of["answers"].items()))
            lines.append(f"| {radius} | {rule} | {of['median']:,.0f} | {of['90 %']:,.0f} | {answers} |")
    return "\n".join(lines) + "\n"


def main(
    checkout: Annotated[Path, typer.Argument(help="A checkout of facde04.")],
    bundle: Annotated[str, typer.Argument(help="The demo bundle whose outcomes are there.")],
    images: Annotated[int, typer.Option(help="Held-out compositions.")] = 100,
    work: Annotated[Path, typer.Option(help="Folder of finished blocks.")] = WORK,
) -> None:
    opened = open_bundle(bundle)
    folder = work / opened.digest[:12]
    there = [outcomes for i in range(images) if (outcomes := kept(folder, i)) is not None]
    if len(there) < images or any(len(each.classes) < MOST for each in there):
        raise FvitError("not all copies are there: run benchmarks.outcomes to its end")
    older = first(checkout, there, classes=len(opened.manifest.labels))
    both = [(each, now(outcomes)) for each, outcomes in zip(older, track(there, "images"), strict=True)]
    decisions = {
        f"{radius:g}": {
            "0.1": summary([old[place] for old, _ in both]),
            "now": summary([new[place] for _, new in both]),
        }
        for place, radius in enumerate(RADII)
    }
    result = {"bundle": opened.digest, "engine": engine_of(folder), "images": images, "decisions": decisions}
    publish("first_rule", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
