"""From the same copies, how many tokens get a certified side by Anani et al.'s rule, how many by the map?

    python -m benchmarks.maps [--images 100]

Their rule (ICML 2025) takes n0 copies to choose the side of every token, and tests it on the n − n0 others
against one τ, at level α/N: what passes keeps its side within σΦ⁻¹(τ). A τ is chosen beforehand, so that each
column of the table is a certificate of its own; the map is one certificate, which gives each token a radius,
and has nine tenths of α, as in a record.

Asked of every explanation that a bundle of the embedded model can carry; each copy is drawn and denoised
once for all of them. The votes of each image are kept in the work folder, bundles in build/explanations: a
run that was stopped goes on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track
from scipy.special import ndtri
from scipy.stats import binom

import fvit
from benchmarks.keeping import RESULTS, publish
from benchmarks.outcomes import ALPHA, AT_ONCE, IMAGES_SEED, NOISE_SEED, SIDE, SIGMA, K, asked
from fvit.certificates.bounds import fixed_bounds
from fvit.certificates.radii import map_radii
from fvit.certificates.tally import Tally
from fvit.demo.data import compositions
from fvit.errors import FvitError
from fvit.extras import require
from fvit.runtime.bundle import DENOISER, open_bundle
from fvit.runtime.images import Picture
from fvit.runtime.noise import noisy_copies, philox_key

WORK, BUNDLES = Path("build/maps"), Path("build/explanations")
COPIES = (100, 400, 1000)
SELECTION = 10
"""n0, as published."""

TAUS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
FINE = tuple(round(0.5 + i / 200, 3) for i in range(1, 99))
"""For the plot: 0.505 to 0.99."""

COLUMNS = 4
"""Of the plot's panels."""

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


def exported(folder: Path) -> list[Path]:
    """A bundle of the embedded student and the original classifier for each explanation, in fp32: the tuned
    one was tuned for `attention` alone."""
    from fvit.demo import models
    from fvit.export.bundles import export_demo
    from fvit.export.explanations import EXPLANATIONS

    weights = sha256(models.STUDENT.read_bytes() + models.CLASSIFIER.read_bytes()).hexdigest()
    folder = folder / f"fp32-{weights[:8]}"
    for name in EXPLANATIONS:
        if not (folder / name).exists():
            print(f"exporting {name}")
            export_demo(folder / name, classifier="original", explanation=name)
    return [folder / name for name in EXPLANATIONS]


def record(vits: Sequence[fvit.FaithfulViT], picture: Picture, cores: Executor) -> list[Integers]:
    """Of each of these, which denoise alike: [looks, N] votes of the first copies and at each n."""
    key = philox_key(picture.pixels_sha256, size=(SIDE, SIDE), seed=NOISE_SEED)

    def some(first: int) -> list[NDArray[np.float32]]:
        noisy = noisy_copies(picture.pixels, range(first, first + AT_ONCE), sigma=SIGMA, key=key)
        images = vits[0].pipeline.denoise(noisy, sigma=np.full(AT_ONCE, SIGMA, np.float32))
        return [vit.pipeline.classify(images)[1] for vit in vits]

    parts = list(cores.map(some, range(0, COPIES[-1], AT_ONCE)))
    return [votes_at_looks(np.concatenate(each)) for each in zip(*parts, strict=True)]


def votes_at_looks(attribution: NDArray[np.float32]) -> Integers:
    """attribution [copies, N] -> [looks, N]."""
    tally, found = Tally(1, attribution.shape[1], (K,)), []
    for look in (SELECTION, *COPIES):
        rows = attribution[tally.copies : look]
        tally.add(np.zeros((len(rows), 1), np.float32), rows)
        found.append(tally.votes[0].copy())
    return np.array(found)


@dataclass(frozen=True, eq=False)
class Recorded:
    """Of a bundle: what ran it, and [I, looks, N] votes."""

    engine: dict[str, str]
    votes: Integers


def alike(bundles: Sequence[Path], opened: ExitStack) -> dict[Path, fvit.FaithfulViT]:
    """All of them on one engine: the one that each by itself would have, or else ONNX Runtime."""
    with ExitStack() as tried:
        found = {each: tried.enter_context(fvit.load(each, device="auto")) for each in bundles}
        if len({vit.engine["device"] for vit in found.values()}) == 1:
            opened.push(tried.pop_all())
            return found
    return {each: opened.enter_context(fvit.load(each, device="cpu")) for each in bundles}


def recorded(bundles: Sequence[Path], images: int, work: Path) -> dict[Path, Recorded]:
    """Every image's votes by every bundle."""
    data = compositions(images, seed=IMAGES_SEED, split="held-out")
    with ExitStack() as opened:
        vits = alike(bundles, opened)
        if len({vit.bundle.manifest.files[DENOISER] for vit in vits.values()}) != 1:
            raise FvitError(
                f"the denoisers of the bundles in {BUNDLES} differ: delete them, to export them again"
            )
        cores = opened.enter_context(ThreadPoolExecutor(len(os.sched_getaffinity(0))))
        for i in track(range(images), "images"):
            files = {bundle: kept_file(work, vit, i) for bundle, vit in vits.items()}
            lacking = [bundle for bundle, file in files.items() if not file.exists()]
            if not lacking:
                continue
            picture = vits[lacking[0]].read(data.images[i])
            found = record([vits[bundle] for bundle in lacking], picture, cores)
            for bundle, votes in zip(lacking, found, strict=True):
                files[bundle].parent.mkdir(parents=True, exist_ok=True)
                with files[bundle].with_suffix(".part").open("wb") as part:
                    np.save(part, votes)
                files[bundle].with_suffix(".part").rename(files[bundle])
        return {
            bundle: Recorded(vit.engine, np.array([np.load(kept_file(work, vit, i)) for i in range(images)]))
            for bundle, vit in vits.items()
        }


def kept_file(work: Path, vit: fvit.FaithfulViT, image: int) -> Path:
    return work / f"{vit.bundle.digest[:12]}-{vit.engine['name']}" / f"{image:03}.npy"


def radii_of(votes: Integers, *, n: int) -> Floats:
    """votes [I,N] of n copies -> the signed radii of the map [I,N], with what a record would spend on it."""
    terms = asked(n=n)
    lower, upper = fixed_bounds(np.arange(n + 1), n, **terms.token_levels(K, tokens=votes.shape[1]))
    return map_radii(lower, upper, sigma=SIGMA)[votes]


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


def summary(bundle: Path, of: Recorded) -> dict[str, Any]:
    opened, votes = open_bundle(bundle), of.votes
    first, rows = votes[:, 0], {}
    for place, n in enumerate(COPIES, start=1):
        radii = radii_of(votes[:, place], n=n)

        def at(tau: float, *, n: int = n, place: int = place, radii: Floats = radii) -> dict[str, float]:
            return compared(first, votes[:, place], radii, n=n, tau=tau)

        rows[n] = {
            "own radius": {f"{q:.0%}": float(np.quantile(np.abs(radii), q)) for q in (0.1, 0.5, 0.9)},
            "in": float((radii > 0).mean()),
            "out": float((radii < 0).mean()),
            "at": [at(tau) for tau in TAUS],
            "plotted": [
                {name: round(float(each[name]), 5) for name in ("radius", "theirs", "ours")}
                for each in map(at, FINE)
            ],
        }
    return {
        "explanation": opened.manifest.explanation,
        "engine": of.engine,
        "bundle": opened.digest,
        "images": len(votes),
        "tokens": votes.shape[2],
        "by n": rows,
    }


def verdict(cell: dict[str, float]) -> str:
    """Of a difference: which certifies more, where the images tell."""
    if cell["more"] == 0:
        return "="
    if abs(cell["more"]) <= SURE * cell["error"]:
        return "≈"
    return "+" if cell["more"] > 0 else "−"


def markdown(result: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"Held-out images, σ = {SIGMA}, k = {K}, α = {ALPHA}; share of all tokens that are certified, by the "
        f"rule of Anani et al. (n0 = {SELECTION}) / by the certified map; the embedded student and original "
        f"classifier, {result[0]['engine']['name']}, {result[0]['engine']['precision']}. Their rule spends "
        "all of α on one τ that is chosen beforehand, the map nine tenths on every token's own radius. + and "
        f"−: it certifies more or less, by over {SURE} standard errors of the difference over images; ≈: "
        "these images do not tell; =: exactly as much. 0 / 0: so few copies say nothing at this τ, even if "
        "all agree.",
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
            cells = (
                f"{at['theirs']:.3f} / {at['ours']:.3f} {verdict(at)}"
                if at["theirs"] or at["ours"]
                else "0 / 0"
                for at in row["at"]
            )
            lines.append(
                f"| {each['explanation']} | {each['images']} | {n:,} | "
                + " | ".join(cells)
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
        figsize=(3.4 * COLUMNS, 3.6 * -(-len(result) // COLUMNS)), dpi=120, layout="constrained"
    )
    colours = dict(zip(COPIES, ("#8a93a6", "#2f62d9", "#1d2433"), strict=True))
    grid = np.ravel(figure.subplots(-(-len(result) // COLUMNS), COLUMNS, sharey=True, squeeze=False))
    for axes, each in zip(grid, result, strict=False):
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
    images: Annotated[int, typer.Option(help="Held-out compositions.")] = 100,
    work: Annotated[Path, typer.Option(help="Folder for finished images.")] = WORK,
) -> None:
    require("matplotlib", extra="plots", purpose="the plot")
    found = recorded(exported(BUNDLES), images, work)
    result = [summary(bundle, each) for bundle, each in found.items()]
    publish("maps", {"explanations": result}, markdown(result))
    plot(result, RESULTS / "maps.png")


if __name__ == "__main__":
    typer.run(main)
