"""From the same copies, how many tokens get a certified side by Anani et al.'s rule, how many by the map?

    fvit-export demo BUNDLE --precision int8 --explanation NAME    # for each explanation
    python -m benchmarks.outcomes BUNDLE --copies 1000
    python -m benchmarks.maps BUNDLE...

Their rule (ICML 2025) takes n0 copies to choose the side of every token, and tests it on the n − n0 others
against one τ, at level α/N: what passes keeps its side within σΦ⁻¹(τ). A τ is chosen beforehand, so that each
column of the table is a certificate of its own; the map is one certificate, which gives each token a radius,
and has nine tenths of α, as in a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track
from scipy.special import ndtri
from scipy.stats import binom

from benchmarks.keeping import RESULTS, publish
from benchmarks.outcomes import ALPHA, SIGMA, WORK, K, asked, kept
from fvit.certificates.claims import token_bounds
from fvit.certificates.radii import map_radii
from fvit.extras import require
from fvit.runtime.bundle import open_bundle

COPIES = (100, 400, 1000)
SELECTION = 10
"""n0, as published."""

TAUS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
FINE = tuple(round(0.5 + i / 200, 3) for i in range(1, 99))
"""For the plot: 0.505 to 0.99."""

SURE = 1.96
"""Standard errors by which a difference has to differ from nothing."""

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def theirs(chosen_from: Integers, tested: Integers, *, n0: int, n: int, tau: float, alpha: float) -> Floats:
    """[…,N] 1 where a token is certified at τ, else 0. chosen_from, tested […,N]: votes of the first n0
    copies, and of the n − n0 others."""
    inside = 2 * chosen_from > n0
    agreeing = np.where(inside, tested, n - n0 - tested)
    p_values = binom.sf(agreeing - 1, n - n0, tau)
    return np.asarray(p_values <= alpha / tested.shape[-1], np.float64)


def measure(folder: Path, images: int) -> tuple[Integers, dict[int, Integers], dict[int, Floats]]:
    """Of all images that have enough copies: votes [I,N] of the first copies, and at each n; and the signed
    radii of the map [I,N] at each n."""
    first: list[Integers] = []
    votes: dict[int, list[Integers]] = {n: [] for n in COPIES}
    radii: dict[int, list[Floats]] = {n: [] for n in COPIES}
    for image in track(range(images), str(folder)):
        outcomes = kept(folder, image)
        if outcomes is None or len(outcomes.classes) < COPIES[-1]:
            continue
        for tally in outcomes.tallies((SELECTION, *COPIES)):
            if tally.copies == SELECTION:
                first.append(tally.votes[0].copy())
                continue
            lower, upper = token_bounds(tally, asked(n=tally.copies), k=K)
            votes[tally.copies].append(tally.votes[0].copy())
            radii[tally.copies].append(map_radii(lower, upper, sigma=SIGMA))
    if not first:
        raise typer.BadParameter(f"{folder} has no image with {COPIES[-1]} copies: run benchmarks.outcomes")
    return (
        np.array(first),
        {n: np.array(each) for n, each in votes.items()},
        {n: np.array(each) for n, each in radii.items()},
    )


def compared(first: Integers, votes: Integers, radii: Floats, *, n: int, tau: float) -> dict[str, float]:
    """Shares of all tokens at one τ, and how much more the map has: a mean over images with its error."""
    radius = SIGMA * float(ndtri(tau))
    their = theirs(first, votes - first, n0=SELECTION, n=n, tau=tau, alpha=ALPHA).mean(axis=1)
    ours = (np.abs(radii) >= radius).mean(axis=1)
    more = ours - their
    return {
        "tau": tau, "radius": radius, "theirs": their.mean(), "ours": ours.mean(),
        "more": more.mean(), "error": more.std(ddof=1) / np.sqrt(len(more)),
    }  # fmt: skip


def summary(bundle: Path, work: Path, images: int) -> dict[str, Any]:
    opened = open_bundle(bundle)
    first, votes, radii = measure(work / opened.digest[:12], images)
    rows: dict[int, Any] = {}
    for n in COPIES:
        own = np.abs(radii[n])
        rows[n] = {
            "own radius": {f"{q:.0%}": float(np.quantile(own, q)) for q in (0.1, 0.5, 0.9)},
            "in": float((radii[n] > 0).mean()),
            "out": float((radii[n] < 0).mean()),
            "at": [compared(first, votes[n], radii[n], n=n, tau=tau) for tau in TAUS],
            "plotted": [
                {name: round(float(at[name]), 5) for name in ("radius", "theirs", "ours")}
                for at in (compared(first, votes[n], radii[n], n=n, tau=tau) for tau in FINE)
            ],
        }
    return {
        "explanation": opened.manifest.explanation,
        "precision": opened.manifest.precision,
        "bundle": opened.digest,
        "images": len(first),
        "tokens": first.shape[1],
        "by n": rows,
    }


def verdict(cell: dict[str, float]) -> str:
    """Of a difference: which certifies more, where the images tell."""
    if abs(cell["more"]) <= SURE * cell["error"]:
        return "="
    return "+" if cell["more"] > 0 else "−"


def markdown(result: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"Held-out images, σ = {SIGMA}, k = {K}, α = {ALPHA}; share of all tokens that are certified, by the "
        f"rule of Anani et al. (n0 = {SELECTION}) / by the certified map. + and −: the map certifies more or "
        f"less, by over {SURE} standard errors of the difference over images; =: the difference is "
        "nothing. 0 / 0: so few copies say nothing at this τ, even if all agree.",
        "",
        "| explanation | images | n | "
        + " | ".join(f"τ = {tau:g}" for tau in TAUS)
        + " | own radius: median (10 % to 90 %) | in, out, open |",
        "|---|---|---|" + "---|" * (len(TAUS) + 2),
        "| radius of τ | | | " + " | ".join(f"{SIGMA * ndtri(tau):.3f}" for tau in TAUS) + " | | |",
    ]
    for each in result:
        for n, row in each["by n"].items():
            own = row["own radius"]
            cells = (f"{at['theirs']:.3f} / {at['ours']:.3f} {verdict(at)}" for at in row["at"])
            lines.append(
                f"| {each['explanation']} | {each['images']} | {n:,} | "
                + " | ".join(cells).replace("0.000 / 0.000", "0 / 0")
                + f" | {own['50%']:.3f} ({own['10%']:.3f} to {own['90%']:.3f}) | "
                f"{row['in']:.0%}, {row['out']:.0%}, {1 - row['in'] - row['out']:.0%} |"
            )
    every = [(each, n, at) for each in result for n, row in each["by n"].items() for at in row["at"]]
    lower = [(each, n, at) for each, n, at in every if at["more"] < 0]
    lines += [
        "",
        f"Of {len(every)} cells the map certifies at least as much in {len(every) - len(lower)}; less in: "
        + (
            "; ".join(
                f"{each['explanation']}, n = {n:,}, τ = {at['tau']:g}: {at['more']:+.4f} "
                f"({abs(at['more']) * each['images'] * each['tokens']:.0f} of "
                f"{each['images'] * each['tokens']:,} tokens)"
                for each, n, at in lower
            )
            or "none"
        )
        + ".",
    ]
    return "\n".join(lines) + "\n"


def plot(result: Sequence[dict[str, Any]], file: Path) -> None:
    figure = require("matplotlib.figure", extra="plots", purpose="the plot").Figure(
        figsize=(3.4 * len(result), 3.6), dpi=150, layout="constrained"
    )
    colours = dict(zip(COPIES, ("#8a93a6", "#2f62d9", "#1d2433"), strict=True))
    for axes, each in zip(np.atleast_1d(figure.subplots(1, len(result), sharey=True)), result, strict=True):
        for n, row in each["by n"].items():
            for rule, line, words in (("ours", "-", "map"), ("theirs", ":", "Anani et al.")):
                shares = ([at[name] for at in row["plotted"]] for name in ("radius", rule))
                axes.plot(*shares, color=colours[n], linestyle=line, label=f"{words}, n = {n:,}")
        axes.set_title(each["explanation"], fontsize=10)
        axes.set_xlabel("ℓ₂ radius")
        axes.set_ylim(0, 1)
    figure.axes[0].set_ylabel("share of tokens certified")
    figure.axes[0].legend(frameon=False, fontsize=6)
    figure.savefig(file)


def main(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles of the demo, one an explanation.")],
    images: Annotated[int, typer.Option(help="Held-out compositions.")] = 100,
    work: Annotated[Path, typer.Option(help="The work folder of benchmarks/outcomes.py.")] = WORK,
) -> None:
    result = [summary(bundle, work, images) for bundle in bundles]
    publish("maps", {"explanations": result}, markdown(result))
    plot(result, RESULTS / "maps.png")


if __name__ == "__main__":
    typer.run(main)
