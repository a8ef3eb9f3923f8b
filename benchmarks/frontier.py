"""What do cheaper denoisers cost: copies a second against what is certified?

    python -m benchmarks.frontier [--steps 6000] [--images 60] [--embedded-images 300]

The teacher with the original classifier; the embedded student, and students of other widths that are trained
here, each with the original and with the tuned one, which was tuned through the embedded student alone; in
fp32 and in int8, on ONNX Runtime. On held-out images, of which every row has the first ones, with the same
noise at σ = 0.25 and 0.5: accuracy, certified accuracy at radius σ, median attention radius (k = 10, β = 0.8,
α = 0.001), the smoothed explanation's share on the digit; clean accuracy and the overlap of clean
explanations with the original's; seconds until class and explanation are decided at radius 0.2. Copies a
second are those with the original classifier, taken in turn, within every round, among the bundles of one
precision. Cells of students that are trained here, whose networks int8 computes too far off, are left out,
and named.
Checkpoints, bundles and each row are kept in the work folder: a run that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from timm.models.vision_transformer import VisionTransformer

import fvit
from benchmarks.engines import in_turn
from benchmarks.keeping import RESULTS, publish, write_json
from benchmarks.machine import machine
from fvit.demo import models
from fvit.demo.data import LABELS, SIZE, compositions, tokens_on_mask
from fvit.demo.train import WORK as POOL
from fvit.demo.train import training_pool
from fvit.errors import FvitError
from fvit.export.bundles import export_bundle
from fvit.export.comparing import LEVELS, Floats, HeldOut, classified, measure
from fvit.export.denoisers import Diffusion
from fvit.export.distillation import train_student
from fvit.export.students import Distilled
from fvit.export.training import Settings
from fvit.export.tuning import Clean
from fvit.extras import require
from fvit.runtime.bundle import Bundle, open_bundle

WORK = Path("build/frontier")
WIDTHS = (16, 24, 32)
"""Of the students that are trained here; the embedded one is wider."""

IMAGES_SEED, POOL_SEED, TRAINING = 86, 0, 40_000
EMBEDDED_STEPS = 18_000
"""Of `python -m fvit.demo.train student`."""

COPIES, DECIDED, MOST, RADIUS = 200, 20, 1000, 0.2
"""Copies of an image; images that are decided, with at most so many copies, at this radius."""

ROUNDS = 7
TEACHER, STUDENT = "teacher", f"width {models.STUDENT_SHAPE.width}, embedded"


@dataclass(frozen=True)
class Cell:
    """One pair of networks in one precision."""

    denoiser: str
    classifier: str
    precision: str


@dataclass(frozen=True)
class Made:
    """floats: of each graph, the layers that int8 left in float."""

    bundle: Bundle
    floats: dict[str, list[str]]


def sources(steps: int, *, work: Path, console: Console) -> dict[str, Diffusion | Distilled]:
    """The denoisers by name, from the cheapest to the dearest, trained where they are not yet."""
    found: dict[str, Diffusion | Distilled] = {}
    pixels, _, _ = training_pool(POOL, count=TRAINING, seed=POOL_SEED)
    for width in WIDTHS:
        console.print(f"student of width {width}")
        student, _ = train_student(
            dataclasses.replace(models.STUDENT_SHAPE, width=width),
            pixels,
            Settings(rate=2e-3, batch=64, seed=0, steps=steps),
            size=(SIZE, SIZE),
            output_size=(SIZE, SIZE),
            work=work / f"training-{width}-{steps}",
            console=console,
        )
        found[f"width {width}, {steps:,} steps"] = Distilled(student, SIZE)
    found[STUDENT] = models.load_denoiser(models.DENOISERS["student"])
    found[TEACHER] = models.load_denoiser(models.DENOISERS["teacher"])
    return found


def exported(cell: Cell, source: Diffusion | Distilled, *, work: Path) -> Made:
    """The pair's bundle, once for the same weights, and its layers that int8 leaves in float."""
    name = models.CLASSIFIERS[cell.classifier]
    weights = sha256()
    for each in (source.student if isinstance(source, Distilled) else source.unet, load(name)):
        for value in each.state_dict().values():
            weights.update(value.numpy().tobytes())
    folder = work / "bundles" / f"{cell.precision}-{weights.hexdigest()[:12]}"
    floats = folder.with_suffix(".json")
    if not floats.exists():
        report = export_bundle(
            folder, classifier=load(name), classifier_name=name, labels=LABELS, denoiser=source,
            denoiser_name=cell.denoiser, precision=cell.precision,
        )  # fmt: skip
        costs = {graph: each.int8 for graph, each in report.items() if each.int8 is not None}
        write_json(floats, {graph: [*cost.floats] for graph, cost in costs.items()})
    return Made(open_bundle(folder), json.loads(floats.read_text()))


def load(name: str) -> VisionTransformer:
    return models.load_classifier(models.weights_of(name))


def held_out(count: int, *, work: Path) -> HeldOut:
    data = compositions(count, seed=IMAGES_SEED, split="held-out")
    files = [work / "images" / f"{i:03}.png" for i in range(count)]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for file, image in zip(files, data.images, strict=True):
        Image.fromarray(image).save(file)
    objects = [*tokens_on_mask(data.masks, patch=8)]
    return HeldOut([*map(str, files)], data.labels.tolist(), objects, n=COPIES)


def row_of(bundle: Bundle, asked: HeldOut, *, wanted: Floats) -> dict[str, Any]:
    """What a bundle certifies. wanted: the original's attribution of the clean images."""
    clean = Clean.of(
        *classified(bundle, asked.files, device=asked.device), asked, wanted=wanted[: len(asked.files)]
    )
    return {
        "images": len(asked.files),
        "clean": dataclasses.asdict(clean),
        "at": [dataclasses.asdict(each) for each in measure(bundle, asked, levels=LEVELS)],
        "decisions": decisions(bundle, asked.files[:DECIDED]),
    }


def decisions(bundle: Bundle, files: Sequence[str]) -> dict[str, Any]:
    seconds, copies, answers = [], [], []
    with fvit.load(bundle) as vit:
        terms = vit.terms(sigma=LEVELS[0], n=MOST, radius=RADIUS, seed=0)
        for file in files:
            picture, began = vit.read(file), time.perf_counter()
            (certificate,) = vit.certify_many([picture], terms)
            seconds.append(time.perf_counter() - began)
            copies.append(certificate.copies)
            assert certificate.decision is not None
            answers.append(certificate.decision.answer)
    return {
        "seconds": float(np.median(seconds)),
        "copies": float(np.median(copies)),
        "undecided": answers.count("undecided"),
        "of": len(files),
    }


def speeds(bundles: dict[str, Bundle]) -> dict[str, dict[str, float]]:
    """By the denoiser's name, of one precision: copies/s, and how many times the teacher's in that round."""
    with ExitStack() as opened:
        vits = {name: opened.enter_context(fvit.load(each)) for name, each in bundles.items()}
        rates = in_turn(vits, rounds=ROUNDS, words="copies/s")
    return {
        name: {"copies": float(np.median(each)), "times": float(np.median(each / rates[TEACHER]))}
        for name, each in rates.items()
    }


def headline(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The embedded student against the teacher with the original classifier, and its int8 against its fp32,
    on the same images."""
    found = {(row["denoiser"], row["classifier"], row["precision"]): row for row in rows}
    base = found[TEACHER, "original", "fp32"]
    for classifier in ("original", "tuned"):
        row, other = (found[STUDENT, classifier, precision] for precision in ("fp32", "int8"))
        radii = (one["radius"] / that["radius"] for one, that in zip(row["at"], base["at"], strict=True))
        clean = 100 * (row["clean"]["accuracy"] - base["clean"]["accuracy"])
        in_float = [f"{name} of {graph}" for graph, names in other["floats"].items() for name in names]
        parts = (
            f"copies/s × {row['speed']['times']:.2f}",
            f"attention radius × {' / '.join(f'{each:.2f}' for each in radii)}",
            f"certified {_points('certified', row, base)} points",
            f"on the digit {_points('on_object', row, base)} points",
            f"clean accuracy {clean:+.1f} points",
        )
        yield (
            f"- Embedded student and {classifier} classifier against teacher and original classifier, fp32, "
            f"{row['images']} images: {', '.join(parts)}. In int8 against fp32: certified "
            f"{_points('certified', other, row)} points; layers left in float: "
            f"{', '.join(in_float) or 'none'}."
        )


def _points(name: str, row: dict[str, Any], base: dict[str, Any]) -> str:
    both = zip(row["at"], base["at"], strict=True)
    return " / ".join(f"{100 * (one[name] - other[name]):+.1f}" for one, other in both)


def markdown(result: dict[str, Any]) -> str:
    where = result["machine"]
    levels = " / ".join(map(str, LEVELS))
    lines = [
        f"{where['cores']} cores of {where['cpu']} ({where['instructions']}), ONNX Runtime; n = {COPIES}, "
        f"k = 10, β = 0.8, α = 0.001; figures with a stroke are at σ = {levels}. Decisions: median of "
        f"{DECIDED} images at radius {RADIUS}, with at most {MOST:,} copies. A share of 90 % has a "
        "standard error of 4 points over 60 images, of 2 over 300, and the first 60 are not like the "
        "rest: only rows of the same number of images compare. Students of other widths were trained "
        f"for {result['steps']:,} steps, the embedded one for {EMBEDDED_STEPS:,}, and the tuned classifier "
        "was tuned through that one alone: both favour it.",
        "",
        "| precision | denoiser | classifier | images | copies/s (× teacher) | accuracy | certified at σ "
        "| median attention radius | on the digit | decision, s (copies) | clean accuracy "
        "| clean top 10 that is the original's |",
        "|" + "---|" * 12,
    ]
    for row in result["rows"]:
        at, clean, decided, speed = row["at"], row["clean"], row["decisions"], row["speed"]

        def both(name: str, form: str, at: Any = at) -> str:
            return " / ".join(format(each[name], form) for each in at)

        lines.append(
            f"| {row['precision']} | {row['denoiser']} | {row['classifier']} | {row['images']} "
            f"| {speed['copies']:.0f} ({speed['times']:.2f}) | {both('accuracy', '.1%')} "
            f"| {both('certified', '.1%')} | {both('radius', '.3f')} | {both('on_object', '.1%')} "
            f"| {decided['seconds']:.2f} ({decided['copies']:.0f}) | {clean['accuracy']:.1%} "
            f"| {clean['overlap']:.1%} |"
        )
    without = [f"- Left out: {cell}: {reason}" for cell, reason in result["left out"].items()]
    return "\n".join([*lines, "", *headline(result["rows"]), *without]) + "\n"


def _certified(name: str, column: int, row: dict[str, Any]) -> float:
    return float(row["at"][column][name])


def _decided(name: str, row: dict[str, Any]) -> float:
    return float(row["decisions"][name])


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    figure = require("matplotlib.figure", extra="plots", purpose="the plot").Figure(
        figsize=(13, 6.4), dpi=150, layout="constrained"
    )
    panels = figure.subplots(2, len(LEVELS) + 1, sharex=True)
    most, fewest = (of(row["images"] for row in rows) for of in (max, min))
    figure.suptitle(f"full: {most} images; empty: the first {fewest} of them", fontsize=9)

    def curves(axes: Any, value: Callable[[dict[str, Any]], float]) -> None:
        """Of this value of a row against its copies/s, one for each precision and classifier."""
        for precision, classifier in product(("fp32", "int8"), ("original", "tuned")):
            of = [row for row in rows if (row["precision"], row["classifier"]) == (precision, classifier)]
            x, y = [row["speed"]["copies"] for row in of], [*map(value, of)]
            color = "#2f62d9" if classifier == "tuned" else "#8a93a6"
            marker, line = "o" if precision == "fp32" else "s", "-" if classifier == "tuned" else ":"
            axes.plot(
                x, y, linestyle=line, marker=marker, color=color, label=f"{classifier}, {precision}",
                markerfacecolor="white",
            )  # fmt: skip
            many = [i for i, row in enumerate(of) if row["images"] == most]
            axes.plot([x[i] for i in many], [y[i] for i in many], linestyle="", marker=marker, color=color)
            for row in of if precision == "fp32" and classifier == "tuned" else []:
                axes.annotate(
                    row["denoiser"].split(",")[0], (row["speed"]["copies"], value(row)),
                    textcoords="offset points", xytext=(4, 5), fontsize=7,
                )  # fmt: skip
        axes.set_xlabel("copies/s")

    for (line, name), (column, sigma) in product(enumerate(("certified", "radius")), enumerate(LEVELS)):
        curves(panels[line][column], partial(_certified, name, column))
        panels[line][column].set_title(f"σ = {sigma:g}", fontsize=10)
    for line, name in enumerate(("seconds", "copies")):
        curves(panels[line][-1], partial(_decided, name))
        panels[line][-1].set_title(f"median decision at {RADIUS:g}: {name}", fontsize=10)
    panels[0][0].set_ylabel("right and certified at σ")
    panels[1][0].set_ylabel("median attention radius")
    panels[0][0].legend(frameon=False, fontsize=7)
    figure.savefig(file)


def main(
    steps: Annotated[int, typer.Option(help="Of each student that is trained here.")] = 6000,
    images: Annotated[int, typer.Option(help="Held-out compositions of each row.")] = 60,
    embedded_images: Annotated[
        int, typer.Option(help="Of the rows that the embedded student is judged by.")
    ] = 300,
    work: Annotated[Path, typer.Option(help="Folder for checkpoints, bundles and rows.")] = WORK,
) -> None:
    require("matplotlib", extra="plots", purpose="the plot")
    console = Console()
    asked = held_out(max(images, embedded_images), work=work)
    found = sources(steps, work=work, console=console)
    cells = [
        Cell(name, classifier, precision)
        for name, classifier, precision in product(found, ("original", "tuned"), ("fp32", "int8"))
        if name != TEACHER or classifier == "original"
    ]
    made, left_out = {}, {}
    for cell in cells:
        try:
            made[cell] = exported(cell, found[cell.denoiser], work=work)
        except FvitError as reason:
            if cell.precision != "int8" or cell.denoiser in (TEACHER, STUDENT):
                raise
            left_out[", ".join(dataclasses.astuple(cell))] = str(reason)
    _, wanted = classified(made[Cell(TEACHER, "original", "fp32")].bundle, asked.files, device=asked.device)
    rows = []
    for cell in made:
        many = cell.denoiser == STUDENT or cell == Cell(TEACHER, "original", "fp32")
        count = embedded_images if many else images
        terms = [made[cell].bundle.digest, count, COPIES, DECIDED, MOST, RADIUS, machine()]
        file = work / "rows" / f"{sha256(json.dumps(terms).encode()).hexdigest()[:12]}.json"
        if not file.exists():
            console.print(*dataclasses.astuple(cell), f"{count} images")
            file.parent.mkdir(exist_ok=True)
            some = dataclasses.replace(
                asked, files=asked.files[:count], right=asked.right[:count],
                objects=(asked.objects or [])[:count],
            )  # fmt: skip
            write_json(file, row_of(made[cell].bundle, some, wanted=wanted))
        kept = json.loads(file.read_text())
        rows.append(dataclasses.asdict(cell) | {"floats": made[cell].floats} | kept)
    for precision in ("fp32", "int8"):
        # Backwards, so that of one denoiser's bundles the original classifier's stays where there is one.
        backwards = reversed(made.items())
        timed = speeds({cell.denoiser: of.bundle for cell, of in backwards if cell.precision == precision})
        for row in rows:
            if row["precision"] == precision:
                row["speed"] = timed[row["denoiser"]]
    result = {"machine": machine(), "steps": steps, "rows": rows, "left out": left_out}
    publish("frontier", result, markdown(result))
    plot(rows, RESULTS / "frontier.png")


if __name__ == "__main__":
    typer.run(main)
