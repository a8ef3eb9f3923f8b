"""How large are certified attention radii, and how many copies does a decision take?

    python -m benchmarks.outcomes BUNDLE && python -m benchmarks.certificates BUNDLE [--images 100]

All figures speak of the same copies, those that benchmarks/outcomes.py kept. Whatever is there is used: an
image whose copies do not suffice for a decision yet counts as one that takes all of them, and the tables say
how many images there are. Class decisions stand beside those of the literature.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track
from scipy.special import betaln, ndtr, xlog1py, xlogy
from scipy.stats import binom

from benchmarks.keeping import RESULTS, publish
from benchmarks.outcomes import (
    ALPHA,
    BETA,
    CLASSES,
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
from fvit.certificates.bounds import clopper_pearson, fixed_bounds, mixture_bounds
from fvit.certificates.claims import attention_claim, count_bounds, token_bounds
from fvit.certificates.literature import exact_radius
from fvit.certificates.radii import attainable_radius, attention_radius, class_radius
from fvit.certificates.tally import Tally
from fvit.extras import require
from fvit.runtime.bundle import open_bundle

FIXED = (100, 1000, 10_000)
CLASS_RADII = (*RADII, 0.6)
SELECTION = 100
WORDS = {
    "vote": "votes, certified",
    "mean": "means, certified (betting bound)",
    "published": "means, published Rényi radius (plug-in, no confidence)",
    "exact of estimate": "means, exact worst case of the estimate (plug-in)",
}
NOT_YET = ("open", MOST)
ANSWERS = ("certified", "not certified", "undecided", NOT_YET[0])

Integers = NDArray[np.int64]


# --- attention at a fixed n, and deciding both claims ----------------------------------------------------


def radii(tally: Tally) -> dict[str, float]:
    """Attention radii at this n, all of it used."""
    claims = {
        aggregate: attention_claim(tally, asked(n=tally.copies, mean=aggregate == "mean"), k=K, grid=GRID)
        for aggregate in ("vote", "mean")
    }
    mean = tally.sums / tally.sums.sum()
    return {
        "vote": claims["vote"].radius_l2,
        "mean": claims["mean"].radius_l2,
        "published": claims["mean"].published_renyi_radius,
        "exact of estimate": exact_radius(mean, k=K, beta=BETA, sigma=SIGMA),
    }


def answer_at_fixed_n(tally: Tally, radius: float) -> str:
    """What one look at all copies says, with all of alpha for it."""
    terms = asked(n=tally.copies)
    p_lower, p_upper = count_bounds(tally.counts.max(), tally, terms, level=terms.class_level)
    lower, upper = token_bounds(tally, terms, k=K)
    tokens = np.argsort(-tally.votes[0], kind="stable")[:K]
    least = attention_radius(lower, upper, tokens, beta=BETA, sigma=SIGMA, aggregate="vote")
    most = attainable_radius(lower, upper, k=K, beta=BETA, sigma=SIGMA, aggregate="vote")
    if min(class_radius(float(p_lower), sigma=SIGMA), least) >= radius:
        return "certified"
    if min(class_radius(float(p_upper), sigma=SIGMA), most) < radius:
        return "not certified"
    return "undecided"


# --- the class alone: counts of one class, and from which on a rule answers ---------------------------------


Thresholds = tuple[Integers, Integers]
"""[n+1] each: after m copies the class is certified with so many or more, refused with so few or fewer."""


def ours(q: float, n: int, looks: Sequence[int]) -> Thresholds:
    """The mixture of docs/method.md, section 6.3, with all of alpha for the class."""
    enough, few = np.full(n + 1, n + 1), np.full(n + 1, -1)
    high, low, before = 1, -1, 0
    for m in looks:
        # With every copy a threshold stays or grows by one.
        steps = np.arange(m - before + 1)
        counts = np.unique(np.concatenate([high + steps, low + steps]).clip(0, m))
        lower, upper = mixture_bounds(counts, m, level=ALPHA)
        reached, missed = counts[lower >= q], counts[upper < q]
        high, low = (reached.min() if len(reached) else m + 1), (missed.max() if len(missed) else -1)
        enough[m], few[m] = (high if len(reached) else n + 1), low
        before = m
    return enough, few


def betting(q: float, n: int, *, alpha: float) -> Thresholds:
    """Algorithm 2 of [7]: the sequence's KT probability against q's; both sides together fail with alpha."""
    enough, few = np.full(n + 1, n + 1), np.full(n + 1, -1)
    for m in range(1, n + 1):
        c = np.arange(m + 1)
        ratio = betaln(c + 0.5, m - c + 0.5) - betaln(0.5, 0.5) - xlogy(c, q) - xlog1py(m - c, -q)
        out = ratio > -np.log(alpha)
        reached, missed = np.flatnonzero(out & (c >= q * m)), np.flatnonzero(out & (c < q * m))
        enough[m] = reached[0] if len(reached) else n + 1
        few[m] = missed[-1] if len(missed) else -1
    return enough, few


def union(q: float, n: int) -> Thresholds:
    """The union bound of [7] as its code has it: binomial tails at numbers of copies that grow by a tenth,
    each side alpha."""
    enough, few = np.full(n + 1, n + 1), np.full(n + 1, -1)
    looks = 0
    for m in range(1, n + 1):
        if m > 1.1 ** (11 + looks):
            looks += 1
            level = 5 * ALPHA / ((looks + 4) * (looks + 5))
            enough[m] = binom.ppf(1 - level, m, q) + 1
            few[m] = m - (binom.ppf(1 - level, m, 1 - q) + 1)
    return enough, few


def rules(q: float, n: int) -> dict[str, Thresholds]:
    looks = asked(n=n, radius=0.1).looks
    return {
        "this package": ours(q, n, looks),
        "this package, looking at every copy": ours(q, n, range(1, n + 1)),
        "Voráček, betting, as its Algorithm 2 (α for both sides)": betting(q, n, alpha=ALPHA),
        "Voráček, betting, as its code (α a side)": betting(q, n, alpha=2 * ALPHA),
        "Voráček, union bound, as its code (α a side)": union(q, n),
    }


def stopped(counts: Integers, thresholds: Thresholds) -> tuple[str, int]:
    """counts: [m] of the class after 1, 2, … copies -> the answer, and the copies that it took."""
    enough, few = (each[1 : len(counts) + 1] for each in thresholds)
    reached, missed = (
        int(each.argmax()) if each.any() else len(counts) for each in (counts >= enough, counts <= few)
    )
    if reached == missed:
        return "undecided", len(counts)
    return ("certified", reached + 1) if reached < missed else ("not certified", missed + 1)


def class_at_fixed_n(classes: Integers, copies: int) -> dict[str, float]:
    """Class radii from so many copies in all: as in [3], and with none set aside for choosing the class."""
    chosen = np.bincount(classes[:SELECTION], minlength=CLASSES).argmax()
    rest = classes[SELECTION:copies]
    cohen, _ = clopper_pearson(int((rest == chosen).sum()), len(rest), alpha=ALPHA)
    counts = np.bincount(classes[:copies], minlength=CLASSES)
    alone, _ = fixed_bounds(counts.max(), copies, level=ALPHA)
    return {
        "Cohen": class_radius(float(cohen), sigma=SIGMA),
        "this package": class_radius(float(alone), sigma=SIGMA),
    }


# --- one image, all images, and how it is told --------------------------------------------------------------


def measure(outcomes: Outcomes, thresholds: dict[float, dict[str, Thresholds]]) -> dict[str, Any]:
    """Everything that the copies of one image tell; what needs more copies than there are is left out."""
    found: dict[str, Any] = {"radii": {}, "decisions": {}, "class": {}, "class at fixed n": {}}
    for tally in outcomes.tallies(FIXED, betting=True):
        found["radii"][tally.copies] = radii(tally)
    whole = len(outcomes.classes) == MOST
    for radius in RADII:
        ended = outcomes.decided(asked(radius=radius))
        end = NOT_YET if ended is None else (ended[1].answer, ended[0])
        found["decisions"][radius] = (*end, answer_at_fixed_n(tally, radius) if whole else None)
    classes = outcomes.classes.astype(np.int64)
    growing = np.cumsum(np.eye(CLASSES, dtype=np.int64)[classes], axis=0)
    most, known = growing.max(axis=1), growing[:, growing[-1].argmax()]
    for radius, by_rule in thresholds.items():
        ends = {
            name: stopped(most if name.startswith("this package") else known, rule)
            for name, rule in by_rule.items()
        }
        found["class"][radius] = {
            name: end if whole or end[0] != "undecided" else NOT_YET for name, end in ends.items()
        }
    for copies in FIXED[1:]:
        if len(classes) >= copies:
            found["class at fixed n"][copies] = class_at_fixed_n(classes, copies)
    return found


def spread(copies: Sequence[int]) -> dict[str, float]:
    return {
        "median": float(np.median(copies)),
        "90th percentile": float(np.quantile(copies, 0.9)),
        "mean": float(np.mean(copies)),
    }


def told(answers: Sequence[str]) -> dict[str, int]:
    return {answer: answers.count(answer) for answer in ANSWERS if answer in answers}


def summary(done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "images": len(done),
        "radii": {},
        "decisions": {},
        "class": {},
        "class at fixed n": {},
    }
    for n in FIXED:
        there = [image["radii"][n] for image in done if n in image["radii"]]
        if there:
            medians = {kind: float(np.median([each[kind] for each in there])) for kind in WORDS}
            result["radii"][n] = {"images": len(there)} | medians
    for radius in RADII:
        ends = [image["decisions"][radius] for image in done]
        both = [(answer, fixed) for answer, _, fixed in ends if fixed]
        result["decisions"][radius] = spread([copies for _, copies, _ in ends]) | {
            "answers": told([answer for answer, _, _ in ends]),
            "compared": len(both),
            "same": sum(a == b for a, b in both),
            "contradictions": sum(a != b and "undecided" not in (a, b) for a, b in both),
        }
    for radius in CLASS_RADII:
        ends = [image["class"][radius] for image in done]
        result["class"][radius] = {
            rule: spread([end[rule][1] for end in ends]) | {"answers": told([end[rule][0] for end in ends])}
            for rule in ends[0]
        }
    for copies in FIXED[1:]:
        there = [image["class at fixed n"][copies] for image in done if copies in image["class at fixed n"]]
        result["class at fixed n"][copies] = {
            rule: {
                "images": len(there),
                "median radius": float(np.median([each[rule] for each in there])),
                "certified": {r: sum(each[rule] >= r for each in there) for r in CLASS_RADII},
            }
            for rule in (there[0] if there else ())
        }
    return result


def markdown(result: dict[str, Any]) -> str:
    every = result["images"]

    def of(images: int) -> str:
        return "" if images == every else f" ({images} images)"

    by_n = result["radii"]
    lines = [
        f"{every} held-out images, σ = {SIGMA}, k = {K}, β = {BETA}, α = {ALPHA}, "
        f"{result['engine']['name']}, {result['engine']['precision']}.",
        "",
        "| median attention radius | "
        + " | ".join(f"{n:,} copies in all{of(row['images'])}" for n, row in by_n.items())
        + " |",
        "|---|" + "---|" * len(by_n),
        *(
            f"| {words} | " + " | ".join(f"{row[kind]:.3f}" for row in by_n.values()) + " |"
            for kind, words in WORDS.items()
        ),
        "",
        "| class and explanation (vote) decided at radius | copies, median | 90th percentile | answers "
        f"| against one look at {MOST:,} |",
        "|---|---|---|---|---|",
    ]
    for radius, row in result["decisions"].items():
        lines.append(
            f"| {radius:g} | {row['median']:,.0f} | {row['90th percentile']:,.0f} | {said(row)} "
            f"| of {row['compared']} {row['same']} the same, {row['contradictions']} contradictions |"
        )
    lines += [
        "",
        "The class alone, with all of α. Voráček's rules are told which class to test: that of most copies.",
        "",
        "| at radius | rule | copies, mean | median | 90th percentile | answers |",
        "|---|---|---|---|---|---|",
    ]
    for radius, by_rule in result["class"].items():
        for rule, row in by_rule.items():
            lines.append(
                f"| {radius:g} | {rule} | {row['mean']:,.0f} | {row['median']:,.0f} "
                f"| {row['90th percentile']:,.0f} | {said(row)} |"
            )
    lines += [
        "",
        "| copies in all | rule | median class radius | "
        + " | ".join(f"certified at {r:g}" for r in CLASS_RADII)
        + " |",
        "|---|---|---|" + "---|" * len(CLASS_RADII),
    ]
    names = {"Cohen": f"Cohen, n0 = {SELECTION}", "this package": "this package"}
    for copies, by_rule in result["class at fixed n"].items():
        for rule, row in by_rule.items():
            lines.append(
                f"| {copies:,}{of(row['images'])} | {names[rule]} | {row['median radius']:.3f} | "
                + " | ".join(str(count) for count in row["certified"].values())
                + " |"
            )
    return "\n".join(lines) + "\n"


def said(row: dict[str, Any]) -> str:
    return ", ".join(f"{count} {answer}" for answer, count in row["answers"].items())


def plot(result: dict[str, Any], file: Path) -> None:
    figure = require("matplotlib.figure", extra="plots", purpose="the plot").Figure(
        figsize=(6, 4), dpi=150, layout="constrained"
    )
    axes = figure.subplots()
    for kind, words in WORDS.items():
        axes.plot(
            list(result["radii"]), [row[kind] for row in result["radii"].values()], marker="o", label=words
        )
    axes.set_xscale("log")
    axes.set_xlabel("copies n")
    axes.set_ylabel("median attention radius")
    axes.legend(frameon=False, fontsize=7)
    figure.savefig(file)


def main(
    bundle: Annotated[str, typer.Argument(help="The bundle that benchmarks/outcomes.py ran.")],
    images: Annotated[int, typer.Option(help="Held-out compositions.")] = 100,
    work: Annotated[Path, typer.Option(help="Its work folder.")] = WORK,
) -> None:
    opened = open_bundle(bundle)
    folder = work / opened.digest[:12]
    thresholds = {r: rules(float(ndtr(r / SIGMA)), MOST) for r in track(CLASS_RADII, "rules for the class")}
    there = [outcomes for i in range(images) if (outcomes := kept(folder, i)) is not None]
    done = [measure(outcomes, thresholds) for outcomes in track(there, "images")]
    engine = engine_of(folder)
    networks = {name: getattr(opened.manifest, name) for name in ("denoiser", "classifier")}
    result = {"bundle": opened.digest, "engine": engine} | networks | summary(done)
    name = f"certificates-{networks['denoiser']}"
    publish(name, result, markdown(result))
    plot(result, RESULTS / f"{name}.png")


if __name__ == "__main__":
    typer.run(main)
