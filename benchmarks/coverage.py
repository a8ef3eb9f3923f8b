"""How often does a certificate claim too much, when the truth is known?

    python benchmarks/coverage.py [--runs 2000]

A copy's outcome is one of a few prototypes (a class and an attribution) with known probabilities, so
smoothed votes, means and class probabilities are exact sums. A certificate fails where any of its
radii exceeds the radius of its formula at the exact values, the largest it may claim; a decision fails
where it contradicts that radius. The published plug-in figure goes through the same worlds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.keeping import publish
from fvit.certificates.literature import exact_radius, published_radius
from fvit.certificates.radii import (
    Aggregate,
    attention_radius,
    class_radius,
)
from fvit.certificates.record import Terms, attention_claim, class_claim, decide
from fvit.certificates.tally import Tally

ALPHA, RUNS = 0.1, 2000
TOKENS, K, BETA, SIGMA = 8, 3, 0.6, 0.5


@dataclass(frozen=True, eq=False)
class World:
    """attributions [M, N], classes [M] and probabilities [M] of the prototypes."""

    attributions: NDArray[np.float64]
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def tally(self) -> Tally:
        return Tally(2, TOKENS, (K,))

    def draw(self, rng: np.random.Generator, tally: Tally, copies: int) -> None:
        """Add that many copies to the tally, counted as the smoother counts them."""
        times = rng.multinomial(copies, self.probabilities)
        tally.copies += copies
        np.add.at(tally.counts, self.classes, times)
        tally.votes[0] += times @ self.votes()
        tally.sums += times @ self.attributions
        tally.squares += times @ self.attributions**2
        for attribution, count in zip(self.attributions, times, strict=True):
            tally.wealth.add_repeated(attribution, int(count))

    def votes(self) -> NDArray[np.int64]:
        ranked = np.argsort(-self.attributions, axis=1, kind="stable")[:, :K]
        votes = np.zeros((len(ranked), TOKENS), np.int64)
        np.put_along_axis(votes, ranked, 1, axis=1)
        return votes

    def means(self) -> NDArray[np.float64]:
        return self.probabilities @ self.attributions

    def true_class_radius(self, index: int) -> float:
        return class_radius(float(self.probabilities[self.classes == index].sum()), sigma=SIGMA)

    def true_attention_radius(self, tokens: NDArray[np.int64], aggregate: Aggregate) -> float:
        exact = self.means() if aggregate == "mean" else self.probabilities @ self.votes()
        return attention_radius(exact, exact, tokens, beta=BETA, sigma=SIGMA, aggregate=aggregate)


def worlds(seed: int, *, runs: int = RUNS) -> Iterator[tuple[World, np.random.Generator]]:
    """Random worlds, and the generator that their copies are drawn with."""
    rng = np.random.default_rng(seed)
    for _ in range(runs):
        lean = np.linspace(3.0, 0.3, TOKENS)
        yield (
            World(
                attributions=rng.dirichlet(lean * rng.uniform(0.5, 8), 6),
                classes=np.array([0, 0, 0, 0, 1, 1]),
                probabilities=rng.dirichlet([3, 3, 3, 2, 1, 0.5]),
            ),
            rng,
        )


def terms(aggregate: Aggregate, *, n: int = 400, radius: float | None = None) -> Terms:
    return Terms(
        sigma=SIGMA, n0=30, n=n, alpha=ALPHA, k=(K,), beta=BETA, aggregate=aggregate, seed=0, radius=radius
    )  # fmt: skip


@dataclass
class Outcome:
    """Of so many runs: those that claimed too much, and those that claimed anything."""

    runs: int = 0
    failures: int = 0
    claims: int = 0


def certificates(aggregate: Aggregate, *, seed: int, runs: int = RUNS) -> Outcome:
    """Fixed-n certificates of class and attention together."""
    claim, outcome = terms(aggregate), Outcome(runs)
    for world, rng in worlds(seed, runs=runs):
        selection, estimation = world.tally(), world.tally()
        world.draw(rng, selection, claim.n0)
        world.draw(rng, estimation, claim.n)
        of_class = class_claim(selection, estimation, claim, labels=("0", "1"), pixels=3)
        attention = attention_claim(selection, estimation, claim, k=K, grid=(2, 4))
        outcome.failures += of_class.radius_l2 > world.true_class_radius(of_class.index) or (
            attention.radius_l2 > world.true_attention_radius(attention.tokens, aggregate)
        )
        outcome.claims += attention.radius_l2 > 0
    return outcome


def decisions(aggregate: Aggregate, *, seed: int, runs: int = RUNS) -> Outcome:
    """Sequential decisions at radii around the truth, where stopping at the first convenient look would
    cheat most."""
    outcome = Outcome(runs)
    for world, rng in worlds(seed, runs=runs):
        selection, estimation = world.tally(), world.tally()
        world.draw(rng, selection, 30)
        chosen = selection.votes[0] if aggregate == "vote" else selection.sums
        tokens = np.argsort(-chosen, kind="stable")[:K]
        truth_class = world.true_class_radius(int(selection.counts.argmax()))
        truth_attention = world.true_attention_radius(tokens, aggregate)
        around = min(truth_class, truth_attention) * rng.uniform(0.8, 1.25)
        if around <= 0:
            continue
        claim = terms(aggregate, n=1000, radius=around)
        for look in claim.checkpoints:
            world.draw(rng, estimation, look - estimation.copies)
            decision = decide(selection, estimation, claim, radius=around)
            if decision.answer != "undecided":
                break
        outcome.claims += decision.answer != "undecided"
        outcome.failures += any(
            (answer == "certified" and truth < around) or (answer == "not certified" and truth >= around)
            for answer, truth in ((decision.class_, truth_class), (decision.attention, truth_attention))
        )
    return outcome


def published(*, seed: int, runs: int = RUNS) -> tuple[float, float]:
    """How often the plug-in figure from estimated means exceeds itself at the exact means, and how
    often it exceeds the exact worst case of those means."""
    above_itself, above_worst = 0, 0
    for world, rng in worlds(seed, runs=runs):
        estimation = world.tally()
        world.draw(rng, estimation, 400)
        exact = world.means()
        estimated = published_radius(estimation.sums / estimation.copies, k=K, beta=BETA, sigma=SIGMA)
        above_itself += estimated > published_radius(exact, k=K, beta=BETA, sigma=SIGMA)
        above_worst += estimated > exact_radius(exact, k=K, beta=BETA, sigma=SIGMA)
    return above_itself / runs, above_worst / runs


def main(runs: Annotated[int, typer.Option(help="Certificates simulated for each row.")] = RUNS) -> None:
    rows: dict[str, Outcome] = {}
    aggregates: tuple[Aggregate, ...] = ("vote", "mean")
    for aggregate in aggregates:
        rows[f"certificate, {aggregate}"] = certificates(aggregate, seed=1, runs=runs)
        rows[f"sequential decision, {aggregate}"] = decisions(aggregate, seed=2, runs=runs)
    above_itself, above_worst = published(seed=3, runs=runs)
    lines = [
        f"α = {ALPHA}; {runs:,} simulated images a row, n0 = 30, n = 400 (decisions: at most 1,000).",
        "",
        "| | false claims | claims made |",
        "|---|---|---|",
        *(f"| {name} | {row.failures / runs:.1%} | {row.claims / runs:.1%} |" for name, row in rows.items()),
        f"| published plug-in: above its own value at the exact means | {above_itself:.1%} | 100 % |",
        f"| published plug-in: above the exact worst case | {above_worst:.1%} | 100 % |",
    ]
    result = {
        "alpha": ALPHA,
        "runs": runs,
        "rows": {name: vars(row) for name, row in rows.items()},
        "published_above_itself": above_itself,
        "published_above_worst_case": above_worst,
    }
    publish("coverage", result, "\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
