"""Does smoothing make explanations more faithful, also under attack? And what does it cost?

    python -m benchmarks.faithfulness [--images 200]

Held-out images of the embedded data, which has masks; every explanation that the embedded model can carry, in
fp32; five ways to get it: of the image as it is; the mean over noisy copies behind the denoiser, as a
certificate has it; over the same copies without the denoiser; and over copies with less noise and no
denoiser, as SmoothGrad (Smilkov et al., 2017) has it. Adversaries move every value of a pixel by at most 2, 4
or 8 of 255, away from the class or from the tokens of `attention` that the attacked model has for the
untouched image, by gradients of the plain model or, in expectation over copies, of the smoothed one. All
explanations meet the one that the literature has, against the plain model's class; `attention` meets all. No
adversary follows the ways without the denoiser: what meets them was made for another model.

Measures are those of fvit-evaluate (docs/evaluation.md). Deletion and insertion are judged by the plain
model, once for the class that the way itself says of the image that it met, which its explanation is of, and
once for the class that the plain model sees in the untouched image: the latter compares ways under one
attack, and neither compares attacks. Each way is held against the plain one on the same images, and the
smoothed model under the attacks on it against the plain one under those on that. Gradients are computed in
bf16 where the CPU multiplies that; the engine is the fastest that is installed. Every image is kept in the
work folder as it is done, so a run that was stopped goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
import typer
from numpy.typing import NDArray

import fvit
from benchmarks.joules import joules
from benchmarks.keeping import publish, resumed
from benchmarks.machine import machine
from benchmarks.maps import BUNDLES, alike, exported
from fvit.certificates.claims import top_tokens
from fvit.demo.data import compositions
from fvit.evaluation.adversarial import rounded
from fvit.evaluation.figures import Figure, Figures, Rows
from fvit.evaluation.judging import probabilities_of
from fvit.evaluation.metrics import area_under, overlap_parts, ranked, removed_counts, segmented
from fvit.evaluation.perturbing import filling, without
from fvit.export.attacking import Adversary, away_from_class, away_from_tokens
from fvit.export.training import fastest_arithmetic
from fvit.runtime.images import Picture
from fvit.runtime.masks import Mask
from fvit.runtime.noise import noisy_copies, philox_key
from fvit.runtime.plain import classify_plain

Floats: TypeAlias = NDArray[np.float32]
Pixels: TypeAlias = NDArray[np.uint8]

IMAGES_SEED, NOISE_SEED = 82, 20261127
SIGMA, K, COPIES, AT_ONCE = 0.25, 10, 32, 8
BUDGETS = (2, 4, 8)
STEPS, FOLLOWED = 10, 8
"""Gradient steps of an attack, and copies that each of them follows."""

FIRST = "attention"
"""The explanation that is attacked."""


@dataclass(frozen=True)
class Way:
    """How an explanation is had. sigma: of the noise on the copies that it is the mean of; None: of the image
    alone."""

    name: str
    sigma: float | None = None
    denoised: bool = False


WAYS = (
    Way("plain"),
    Way("smoothed", SIGMA, denoised=True),
    Way("without denoiser", SIGMA),
    Way("SmoothGrad, σ = 0.05", 0.05),
    Way("SmoothGrad, σ = 0.15", 0.15),
)

Models: TypeAlias = Mapping[str, fvit.FaithfulViT]
"""One for each explanation; all denoise alike."""


@dataclass(frozen=True)
class Met:
    """What an image is met as: clean, or after an attack on a model's class or tokens; by all explanations or
    by FIRST alone."""

    name: str
    budget: int = 0
    model: str = "plain"
    target: str = "class"

    @property
    def by_all(self) -> bool:
        return (self.model, self.target) == ("plain", "class")


ATTACKS = tuple(
    Met(f"{model} {target}, {budget}", budget, model, target)
    for model in ("plain", "smoothed")
    for target in ("class", "tokens")
    for budget in BUDGETS
)
CLEAN = Met("clean")


def attacked(
    adversary: Adversary, picture: Picture, met: Met, *, index: int, tokens: Sequence[int], seed: int
) -> Pixels:
    """The 8-bit image that an adversary comes to."""
    if met is CLEAN:
        return picture.pixels
    with torch.autocast("cpu", torch.bfloat16, enabled=fastest_arithmetic() == "bf16"):
        proposed = adversary.follow(
            np.divide(picture.pixels, 255, dtype=np.float32),
            loss=away_from_class(index) if met.target == "class" else away_from_tokens(tokens),
            norm="linf", radius=met.budget / 255, sigma=SIGMA if met.model == "smoothed" else None,
            draw=np.random.default_rng([seed, ATTACKS.index(met)]),
        )  # fmt: skip
    return rounded(proposed, picture.pixels, budget=met.budget)


def explained(
    models: Models, names: Sequence[str], pixels: Pixels, way: Way, cores: Executor, *, key: int
) -> Explained:
    """What the copies of an image say, and the mean of each explanation over them."""

    def some(first: int, *, sigma: float) -> list[tuple[Floats, Floats]]:
        seen = noisy_copies(pixels, range(first, first + AT_ONCE), sigma=sigma, key=key)
        if way.denoised:
            seen = models[FIRST].pipeline.denoise(seen, sigma=np.full(AT_ONCE, sigma, np.float32))
        return [models[name].pipeline.classify(seen) for name in names]

    if way.sigma is None:
        parts = [[classify_plain(models[name], pixels[None]) for name in names]]
    else:
        parts = list(cores.map(partial(some, sigma=way.sigma), range(0, COPIES, AT_ONCE)))
    votes = np.concatenate([part[0][0].argmax(axis=1) for part in parts])
    means = {
        name: np.concatenate([part[place][1] for part in parts]).mean(axis=0, dtype=np.float64)
        for place, name in enumerate(names)
    }
    return Explained(int(np.bincount(votes).argmax()), means)


@dataclass(frozen=True, eq=False)
class Explained:
    """The class that most copies have, and an attribution [N] by each explanation."""

    index: int
    attributions: Mapping[str, NDArray[np.float64]]


Part: TypeAlias = "tuple[float, float]"


def measured(
    models: Models,
    adversary: Adversary,
    picture: Picture,
    cores: Executor,
    *,
    label: int,
    mask: Mask,
    seed: int,
) -> Iterator[tuple[str, Part]]:
    """One image's part of every figure, by a key of words between bars."""
    clean: dict[tuple[Way, str], set[int]] = {}
    logits, plain = classify_plain(models[FIRST], picture.pixels[None])
    index = int(logits[0].argmax())
    aims = {"plain": (index, top_tokens(plain[0], K).tolist())}
    for number, met in enumerate((CLEAN, *ATTACKS)):
        aim, tokens = aims[met.model]
        pixels = attacked(adversary, picture, met, index=aim, tokens=tokens, seed=seed)
        names = list(models) if met.by_all else [FIRST]
        own = models[FIRST].read(pixels.transpose(1, 2, 0)).pixels_sha256
        key, other = (philox_key(own, size=mask.shape, seed=NOISE_SEED + i) for i in range(2))
        ties = 2 * (seed * (1 + len(ATTACKS)) + number)
        for way in WAYS:
            found = again = explained(models, names, pixels, way, cores, key=key)
            if met is CLEAN and way.sigma is not None:
                again = explained(models, names, pixels, way, cores, key=other)
            if met is CLEAN and way.name == "smoothed":
                aims[way.name] = (found.index, top_tokens(found.attributions[FIRST], K).tolist())
            yield _key(met, way, "accuracy"), (float(found.index == label), 1)
            orders = {name: ranked(each, seed=ties) for name, each in found.attributions.items()}
            classes = {"": found.index, CLEAN_CLASS: index}
            judge = partial(judged, models[FIRST], pixels, classes=classes)
            for (name, order), parts in zip(orders.items(), cores.map(judge, orders.values()), strict=True):
                top = set(ranked(again.attributions[name], seed=ties + (met is CLEAN))[:K].tolist())
                before = clean.setdefault((way, name), set(order[:K].tolist()))
                yield _key(met, way, "overlap", name), (len(top & before) / K, 1)
                segments = _segmented(found.attributions[name], mask, grid=models[FIRST].bundle.manifest.grid)
                for what, part in (*parts, *segments):
                    yield _key(met, way, what, name), part


def _key(met: Met, way: Way, *others: str) -> str:
    return "|".join((met.name, way.name, *others))


def judged(
    vit: fvit.FaithfulViT, pixels: Pixels, order: NDArray[np.int64], *, classes: Mapping[str, int]
) -> list[tuple[str, Part]]:
    """Deletion removes the tokens in this order, insertion puts them in: it ends with the last ones removed
    alone. classes: those whose probability is told, by what is added to the measures' names."""
    grid = vit.bundle.manifest.grid
    counts = removed_counts(len(order))
    sets = [each[:count] for each in (order, order[::-1]) for count in counts]
    changed = without(pixels, filling(pixels, "mean", grid=grid), sets, grid=grid)
    logits, _ = classify_plain(vit, np.concatenate([pixels[None], changed]))
    found = []
    for words, index in classes.items():
        untouched, *shares = probabilities_of(logits)[:, index]
        for what, points in (("deletion", shares[: len(counts)]), ("insertion", shares[len(counts) :])):
            found.append((what + words, (float(area_under(np.array([untouched, *points]))), 1.0)))
    return found


def _segmented(
    attribution: NDArray[np.float64], mask: Mask, *, grid: tuple[int, int]
) -> Iterator[tuple[str, Part]]:
    found = segmented(attribution.reshape(grid), mask)
    cut, on_object = found.at_mean, int(mask.sum())
    yield from overlap_parts(
        predicted=cut.predicted, hit=cut.hit, labelled=mask.size, on_object=on_object
    ).items()
    yield "mAP", (found.average_precision, 1)


def costs(vit: fvit.FaithfulViT, picture: Picture, cores: Executor) -> list[dict[str, Any]]:
    """Seconds, and the processors' joules where they are counted, of an explanation each way and of a
    certificate."""
    key = philox_key(picture.pixels_sha256, size=vit.pipeline.image_size, seed=NOISE_SEED)
    work: dict[str, Callable[[], object]] = {
        way.name if way.sigma is None else f"{way.name}, {COPIES} copies": partial(
            explained, {FIRST: vit}, [FIRST], picture.pixels, way, cores, key=key
        )
        for way in WAYS
    }
    work |= {f"certificate, n = {n:,}": partial(vit.certify, picture, n=n) for n in (100, 1000)}
    found = []
    for name, do in work.items():
        do()
        before, start, worked, times = joules(), time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < 2 or not times:
            do()
            times += 1
        seconds, of_cores = (time.perf_counter() - start) / times, (time.process_time() - worked) / times
        after = joules()
        # A counter that began anew tells nothing.
        used = None if before is None or after is None or after < before else (after - before) / times
        found.append({"what": name, "seconds": seconds, "core seconds": of_cores, "joules": used})
    return found


CLEAN_CLASS = ", clean class"

OWN_CLASS = ("deletion", "insertion")
"""Judged for a class that two ways may say differently: told, and not compared."""

MEASURES = {
    "overlap": 1, "deletion": -1, "insertion": 1, f"deletion{CLEAN_CLASS}": -1, f"insertion{CLEAN_CLASS}": 1,
    "pixel accuracy": 1, "mIoU": 1, "mAP": 1,
}  # fmt: skip
"""Measures of an explanation, and which way is better."""

PLAIN, SMOOTHED = WAYS[0], WAYS[1]


def figures_of(
    done: Sequence[Mapping[str, Part]], names: Sequence[str]
) -> tuple[dict[str, Figure], dict[str, Figure], dict[str, Figure]]:
    """By key: the figures; how much larger they are than those of the plain way; and how much larger those
    of the smoothed model under an attack on it than the plain one's under the same on that."""
    rows = Rows()
    for each in done:
        rows.add({(key,): (part[0], part[1]) for key, part in each.items()})
    figures: Figures = rows.figures()

    def parts(met: Met, way: Way, what: str, *name: str) -> list[tuple[str]]:
        each = ("IoU of the object", "IoU of the background") if what == "mIoU" else (what,)
        return [(_key(met, way, part, *name),) for part in each]

    found, more, own = {}, {}, {}
    for met, way in product((CLEAN, *ATTACKS), WAYS):
        cells = [("accuracy",), *product(MEASURES, names if met.by_all else [FIRST])]
        for cell in cells:
            key = _key(met, way, *cell)
            found[key] = figures.of(*parts(met, way, *cell))
            if way is not PLAIN:
                more[key] = figures.difference(parts(met, way, *cell), parts(met, PLAIN, *cell))
    for on_plain, on_smoothed in OWN:
        for cell in (("accuracy",), *product(OF_ATTACKS, [FIRST])):
            key = _key(on_smoothed, SMOOTHED, *cell)
            own[key] = figures.difference(parts(on_smoothed, SMOOTHED, *cell), parts(on_plain, PLAIN, *cell))
    return found, more, own


OF_ATTACKS = ("overlap", "pixel accuracy", "mIoU", "mAP")
"""Measures that compare images under different attacks too: deletion and insertion begin at what the plain
model says of the attacked image, whatever explains it."""

OWN = [
    (on_plain, on_smoothed)
    for on_plain, on_smoothed in product(ATTACKS, repeat=2)
    if (on_plain.model, on_smoothed.model) == ("plain", "smoothed")
    and (on_plain.target, on_plain.budget) == (on_smoothed.target, on_smoothed.budget)
]
"""The same attack on the plain and on the smoothed model."""


def verdict(more: Figure, better: int) -> str:
    """Of a difference to the plain way: + better, − worse, ≈ where these images do not tell."""
    if more["low"] <= 0 <= more["high"]:
        return "≈"
    return "+" if more["value"] * better > 0 else "−"


def compared(met: Met, what: str) -> bool:
    """Whether a measure says by itself which of two ways is the better one."""
    return what not in OWN_CLASS and (met, what) != (CLEAN, "overlap")


def no_help(result: dict[str, Any]) -> Iterator[str]:
    """Where the smoothed explanation is no better than the plain one, attack by attack."""
    for met in (CLEAN, *ATTACKS):
        names = result["explanations"] if met.by_all else [FIRST]
        cells = {
            (name, what): verdict(result["more than plain"][_key(met, SMOOTHED, what, name)], better)
            for name in names
            for what, better in MEASURES.items()
            if compared(met, what)
        }
        told = {mark: [cell for cell, found in cells.items() if found == mark] for mark in "+≈−"}
        worse = "; ".join(f"`{name}` {what}" for name, what in told["−"])
        accuracy = result["more than plain"][_key(met, SMOOTHED, "accuracy")]
        against = " (made against the plain model alone)" if met.budget and met.model == "plain" else ""
        yield (
            f"- {met.name[0].upper()}{met.name[1:]}{against}: smoothed is better than plain in "
            f"{len(told['+'])} of {len(cells)} cells, not told apart in {len(told['≈'])}, worse in "
            f"{len(told['−'])}"
            f"{f' ({worse})' if worse else ''}; its accuracy is {_more(accuracy)} {verdict(accuracy, 1)}."
        )


def _more(figure: Figure) -> str:
    return f"{figure['value']:+.3f} ({figure['low']:+.3f} to {figure['high']:+.3f})"


def under_its_own(own: Mapping[str, Figure]) -> Iterator[str]:
    """A row an attack on each of the two models: the differences in what compares attacks."""
    better = {("accuracy",): 1} | {(what, FIRST): MEASURES[what] for what in OF_ATTACKS}
    yield f"| attack on each | {' | '.join(what for what, *_ in better)} |"
    yield "|---" * (1 + len(better)) + "|"
    for _, met in OWN:
        found = {what: own[_key(met, SMOOTHED, *what)] for what in better}
        cells = (f"{_more(figure)} {verdict(figure, better[what])}" for what, figure in found.items())
        yield f"| {met.target}, {met.budget} | {' | '.join(cells)} |"


def markdown(result: dict[str, Any]) -> str:
    figures: dict[str, Figure] = result["figures"]

    def cell(met: Met, way: Way, what: str, *name: str) -> str:
        key = _key(met, way, what, *name)
        figure = figures[key]
        marked = way is not PLAIN and (what == "accuracy" or compared(met, what))
        mark = "" if not marked else f" {verdict(result['more than plain'][key], MEASURES.get(what, 1))}"
        return f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f}){mark}"

    lines = [
        f"{result['images']} held-out images, the embedded student and original classifier, σ = {SIGMA}, "
        f"{COPIES} copies, k = {K}, {result['engine']['name']}, {result['engine']['precision']}; in brackets "
        "95 % bootstrap intervals. + and −: better and worse than plain, by the interval of the difference "
        "on the same images, so that of a hundred cells without a difference five are marked; ≈: not told "
        "apart. Overlap is with the clean image's first tokens, clean with those of other noise. An attack "
        "is named by whose class or tokens it moves away from, and by its ℓ∞ budget in 255ths; none was made "
        "for the ways without the denoiser, and what was made for the plain model only carries over to the "
        "smoothed one. Deletion and insertion are judged by the plain model, for the class that the way "
        "itself says of the image that it met, which under an attack may be another for each way, and so is "
        f"not compared; and, as “{CLEAN_CLASS[2:]}”, for the one that the plain model sees in the untouched "
        "image.",
        "",
        "Each model under the attacks on itself, smoothed less plain (`attention`):",
        "",
        *under_its_own(result["each under its own"]),
        "",
        "Where smoothing helps, and where not:",
        "",
        *no_help(result),
        "",
        "Accuracy:",
        "",
        f"| way | {' | '.join(met.name for met in (CLEAN, *ATTACKS))} |",
        "|---" * (2 + len(ATTACKS)) + "|",
    ]
    for way in WAYS:
        row = " | ".join(cell(met, way, "accuracy") for met in (CLEAN, *ATTACKS))
        lines.append(f"| {way.name} | {row} |")
    for met in (CLEAN, *ATTACKS):
        names = result["explanations"] if met.by_all else [FIRST]
        lines += ["", f"{met.name[0].upper()}{met.name[1:]}:", ""]
        lines += [f"| explanation | way | {' | '.join(MEASURES)} |", "|---" * (2 + len(MEASURES)) + "|"]
        lines += [
            f"| `{name}` | {way.name} | {' | '.join(cell(met, way, what, name) for what in MEASURES)} |"
            for name in names
            for way in WAYS
        ]
    lines += ["", "What it costs, with `attention`, on every core:", ""]
    lines += ["| | seconds | seconds of a core | joules of the processors (RAPL) |", "|---|---|---|---|"]
    lines += [
        f"| {each['what']} | {each['seconds']:.3f} | {each['core seconds']:.3f} "
        f"| {'not told by this machine' if each['joules'] is None else format(each['joules'], '.1f')} |"
        for each in result["costs"]
    ]
    return "\n".join(lines) + "\n"


def main(
    images: Annotated[int, typer.Option(help="Held-out compositions.")] = 200,
    work: Annotated[Path, typer.Option(help="Folder for finished images.")] = Path("build/faithfulness"),
) -> None:
    data = compositions(images, seed=IMAGES_SEED, split="held-out")
    with ExitStack() as opened:
        bundles = exported(BUNDLES)
        models = {bundle.name: vit for bundle, vit in alike(bundles, opened).items()}
        first = models[FIRST]
        adversary = Adversary.of(first.bundle, weights=None, denoiser=None, steps=STEPS, copies=FOLLOWED)
        cores = opened.enter_context(ThreadPoolExecutor(len(os.sched_getaffinity(0))))

        def measure(i: int) -> dict[str, Any]:
            return dict(
                measured(
                    models, adversary, first.read(data.images[i]), cores, label=int(data.labels[i]),
                    mask=data.masks[i].astype(np.int8), seed=i,
                )
            )  # fmt: skip

        asked = f"{WAYS} {ATTACKS} {MEASURES} {K} {COPIES} {STEPS} {FOLLOWED} {IMAGES_SEED} {NOISE_SEED}"
        asked += " ".join([first.engine["name"], *(vit.bundle.digest for vit in models.values())])
        journal = work / f"{sha256(asked.encode()).hexdigest()[:16]}.jsonl"
        # A core waits less where gradients of one image and copies of another share the cores.
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
        done = resumed(journal, images, measure, words="images", at_once=2)
        figures, more, own = figures_of(done, list(models))
        result: dict[str, Any] = {
            "images": images, "machine": machine(), "engine": first.engine, "explanations": list(models),
            "bundles": {name: vit.bundle.digest for name, vit in models.items()},
            "figures": figures, "more than plain": more, "each under its own": own,
            "costs": costs(first, first.read(data.images[0]), cores),
        }  # fmt: skip
    publish("faithfulness", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
