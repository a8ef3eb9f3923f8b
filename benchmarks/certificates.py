"""How large are certified attention radii, and how many copies does a decision save?

    python benchmarks/certificates.py BUNDLE [--images 100]

One pass over the copies of an image serves everything: the counts are looked at where fixed n and
where the sequential decision would look, so all figures speak of the same copies. Every image is
kept in the work folder as it is done, so a run that was stopped continues.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.keeping import RESULTS, publish, resumed
from fvit.certificates.literature import exact_radius
from fvit.certificates.radii import Aggregate, attention_radius
from fvit.certificates.record import Terms, attention_claim, decide
from fvit.certificates.tally import Tally
from fvit.demo.data import compositions
from fvit.extras import require
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.host import Section, Smoother
from fvit.runtime.images import Picture
from fvit.runtime.loading import load

FIXED = (100, 1000, 10_000)
RADII = {"easy": 0.05, "typical": 0.2, "hard": 0.4}
AGGREGATES: tuple[Aggregate, ...] = ("vote", "mean")
SEED = 79
WORDS = {
    "vote": "votes, certified",
    "mean": "means, certified (betting bound)",
    "mean, empirical Bernstein": "means, certified by empirical Bernstein instead",
    "published": "means, published Rényi radius (plug-in, no confidence)",
    "exact of estimate": "means, exact worst case of the estimate (plug-in)",
}


def terms(aggregate: Aggregate, *, n: int, batch: int, radius: float | None = None) -> Terms:
    return Terms(
        sigma=0.25, n0=100, n=n, alpha=1e-3, k=(10,), beta=0.8, aggregate=aggregate, seed=0,
        radius=radius, batch=batch,
    )  # fmt: skip


def measure(vit: FaithfulViT, picture: Picture) -> dict[str, Any]:
    """The radii of one image at every fixed n, and when each decision would have stopped."""
    n = FIXED[-1]
    decisions = {
        (name, aggregate): terms(aggregate, n=n, batch=vit.batch, radius=radius)
        for name, radius in RADII.items()
        for aggregate in AGGREGATES
    }
    open_ones = dict(decisions)
    looks = sorted({*FIXED, *(look for claim in decisions.values() for look in claim.checkpoints)})
    selection, estimation = (Tally(vit.pipeline.classes, vit.pipeline.tokens, (10,)) for _ in range(2))
    smoother, common = Smoother(vit.pipeline, batch=vit.batch), terms("vote", n=n, batch=vit.batch)

    def count(copies: range, tally: Tally) -> None:
        for _ in smoother.run([Section(picture.pixels, copies, tally)], sigma=common.sigma, seed=common.seed):
            pass

    count(range(common.n0), selection)
    result: dict[str, Any] = {"fixed": {}, "decisions": {}}
    for look in looks:
        count(range(common.n0 + estimation.copies, common.n0 + look), estimation)
        if look in FIXED:
            claims = {
                aggregate: attention_claim(
                    selection, estimation, terms(aggregate, n=look, batch=vit.batch), k=10, grid=(8, 8)
                )
                for aggregate in AGGREGATES
            }
            mean = estimation.sums / estimation.sums.sum()
            bernstein = attention_radius(
                *empirical_bernstein(estimation, alpha=common.alpha / 2 / len(mean)),
                claims["mean"].tokens, beta=0.8, sigma=0.25, aggregate="mean",
            )  # fmt: skip
            result["fixed"][str(look)] = {
                "published": claims["mean"].published_renyi_radius,
                "exact of estimate": exact_radius(mean, k=10, beta=0.8, sigma=0.25),
                "mean, empirical Bernstein": bernstein,
            } | {aggregate: claim.radius_l2 for aggregate, claim in claims.items()}
        for key, claim in list(open_ones.items()):
            if look in claim.checkpoints:
                assert claim.radius is not None
                answer = decide(selection, estimation, claim, radius=claim.radius).answer
                if answer != "undecided" or look == n:
                    result["decisions"]["/".join(key)] = {"answer": answer, "copies": common.n0 + look}
                    del open_ones[key]
    for key, claim in decisions.items():
        once = dataclasses.replace(claim, radius=None)  # all of alpha for the one look at n
        assert claim.radius is not None
        result["decisions"]["/".join(key)]["fixed_n_answer"] = decide(
            selection, estimation, once, radius=claim.radius
        ).answer
    return result


def empirical_bernstein(tally: Tally, *, alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(lower, upper) [N] on the mean attributions, each one-sided at alpha (Maurer & Pontil 2009): what the
    betting bound of the package is measured against."""
    n = tally.copies
    mean = tally.sums / n
    variance = (tally.squares - n * mean**2).clip(0) / (n - 1)
    log = np.log(2 / alpha)
    width = np.sqrt(2 * variance * log / n) + 7 * log / (3 * (n - 1))
    return (mean - width).clip(0, 1), (mean + width).clip(0, 1)


def summary(done: list[dict[str, Any]]) -> dict[str, Any]:
    def median(n: int, kind: str) -> float:
        return float(np.median([image["fixed"][str(n)][kind] for image in done]))

    kinds = list(done[0]["fixed"][str(FIXED[0])])
    decided = {}
    for key in (f"{name}/{aggregate}" for aggregate in AGGREGATES for name in RADII):
        outcomes = [image["decisions"][key] for image in done]
        copies = [outcome["copies"] for outcome in outcomes]
        pairs = [(outcome["answer"], outcome["fixed_n_answer"]) for outcome in outcomes]
        decided[key] = {
            "median_copies": float(np.median(copies)),
            "p90_copies": float(np.quantile(copies, 0.9)),
            "answers": {
                answer: sum(a == answer for a, _ in pairs) for answer in sorted({a for a, _ in pairs})
            },
            "same_answer": sum(a == f for a, f in pairs),
            "contradictions": sum(a != f and "undecided" not in (a, f) for a, f in pairs),
        }
    return {
        "images": len(done),
        "median_radius": {kind: {str(n): median(n, kind) for n in FIXED} for kind in kinds},
        "decisions": decided,
    }


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{result['images']} held-out images, σ = 0.25, k = 10, β = 0.8, α = 0.001, n0 = 100, "
        f"{result['precision']}.",
        "",
        "| median attention radius | " + " | ".join(f"n = {n:,}" for n in FIXED) + " |",
        "|---|" + "---|" * len(FIXED),
    ]
    for kind, words in WORDS.items():
        by_n = result["median_radius"][kind]
        lines.append(f"| {words} | " + " | ".join(f"{value:.3f}" for value in by_n.values()) + " |")
    lines += [
        "",
        "| decision at radius | copies, median | 90th percentile | answers | against fixed n = 10,000 |",
    ]
    lines.append("|---|---|---|---|---|")
    for key, row in result["decisions"].items():
        name, aggregate = key.split("/")
        answers = ", ".join(f"{count} {answer}" for answer, count in row["answers"].items())
        agreement = f"{row['same_answer']} the same, {row['contradictions']} contradictions"
        lines.append(
            f"| {RADII[name]:g} ({name}), {aggregate} | {row['median_copies']:,.0f} "
            f"| {row['p90_copies']:,.0f} | {answers} | {agreement} |"
        )
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], file: Path) -> None:
    figure = require("matplotlib.figure", extra="plots", purpose="the plot").Figure(
        figsize=(6, 4), dpi=150, layout="constrained"
    )
    axes = figure.subplots()
    for kind, words in WORDS.items():
        axes.plot(FIXED, list(result["median_radius"][kind].values()), marker="o", label=words)
    axes.set_xscale("log")
    axes.set_xlabel("copies n")
    axes.set_ylabel("median attention radius")
    axes.legend(frameon=False, fontsize=7)
    figure.savefig(file)


def main(
    bundle: Annotated[Path, typer.Argument(help="The demo bundle.")],
    images: Annotated[int, typer.Option(help="Held-out compositions.")] = 100,
    work: Annotated[Path, typer.Option(help="Folder for finished images.")] = Path("build/certificates"),
) -> None:
    vit = load(bundle)
    data = compositions(images, seed=SEED, split="held-out")
    done = resumed(
        work / f"{vit.bundle.digest[:12]}.jsonl",
        images,
        lambda i: measure(vit, vit.read(data.images[i])),
        words="10,100 copies an image",
    )
    result = {"bundle": vit.bundle.digest, "precision": vit.bundle.manifest.precision} | summary(done)
    publish("certificates", result, markdown(result))
    plot(result, RESULTS / "certificates.png")


if __name__ == "__main__":
    typer.run(main)
