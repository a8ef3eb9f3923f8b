"""How many noisy copies a second, against the same models in torch?

    python -m benchmarks.throughput [--quick] [--model demo] [--json FILE]

Five ways side by side in one run: torch eager in fp32 (the research loop), torch.compile in fp32, torch
under bf16 autocast, our fp32 and our int8 on ONNX Runtime. Rounds are interleaved (A B C A B C …), so that
a slow minute of the machine meets all of them; rates are medians, ratios are taken inside each round.
The embedded teacher and original classifier, and ViT-B/16 at 224 pixels behind the teacher. --quick leaves
torch.compile and ViT-B out.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import Progress

from benchmarks.contenders import classifier, diffusion, export
from benchmarks.keeping import RESULTS, publish
from benchmarks.machine import machine
from benchmarks.research_loop import ResearchLoop
from fvit.certificates.tally import Tally
from fvit.demo.data import compositions
from fvit.engines.onnxruntime import ROWS
from fvit.engines.opening import open_engine
from fvit.extras import require
from fvit.runtime.bundle import open_bundle
from fvit.runtime.host import DenoisedClassifier, Floats, HostCounter
from fvit.runtime.images import Picture, read_image
from fvit.runtime.loading import ON_CORE
from fvit.runtime.noise import noisy_copies
from fvit.runtime.queue import Queue, Stretch

SIGMA, K, BATCH = 0.25, 10, 32
COPIES = {"demo": 64, "vit-b": BATCH}
"""Of a round."""

Timed = Callable[[], Any]


class Stopwatch:
    """Seconds spent inside the calls that it watches, by all threads together."""

    def __init__(self) -> None:
        self._calls: list[float] = []  # appending is safe from any thread

    @property
    def seconds(self) -> float:
        return sum(self._calls)

    def watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self._calls.append(time.perf_counter() - start)

        return timed


@dataclass(frozen=True)
class Way:
    """One way to run a model: what to time by stage, and the time its networks took of that, in so many
    threads at once."""

    stages: dict[str, Timed]
    networks: Stopwatch
    threads: int = 1

    def round(self) -> tuple[dict[str, float], float]:
        """Seconds of each stage; and the share of the pipeline's time that the networks do not have."""
        taken, inside = {}, {}
        for stage, run in self.stages.items():
            before, start = self.networks.seconds, time.perf_counter()
            run()
            taken[stage] = time.perf_counter() - start
            inside[stage] = (self.networks.seconds - before) / self.threads
        return taken, 1 - inside["pipeline"] / taken["pipeline"]


def torch_way(model: str, pixels: np.ndarray[Any, Any], *, kind: str, copies: int) -> Way:
    loop = ResearchLoop(classifier(model), diffusion(model), autocast=kind == "torch-bf16")
    if kind == "torch-compile":
        loop.denoise, loop.classify = torch.compile(loop.denoise), torch.compile(loop.classify)
    networks = Stopwatch()
    loop.denoise, loop.classify = networks.watched(loop.denoise), networks.watched(loop.classify)
    image = torch.from_numpy(pixels)
    noisy = image + SIGMA * torch.randn(BATCH, *image.shape)
    level, timestep = torch.full((BATCH,), SIGMA), torch.full((BATCH,), loop.timestep(SIGMA))
    with torch.no_grad():
        images = loop.denoise(noisy, level, timestep).clone()

    def stage(run: Timed) -> Timed:
        def timed() -> None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=loop.autocast):
                for _ in range(0, copies, BATCH):
                    run()

        return timed

    stages = {
        "pipeline": lambda: loop.run(image, copies=copies, sigma=SIGMA, k=K, batch=BATCH),
        "noise": stage(lambda: image.repeat(BATCH, 1, 1, 1) + SIGMA * torch.randn(BATCH, *image.shape)),
        "denoiser": stage(lambda: loop.denoise(noisy, level, timestep)),
        "classifier": stage(lambda: loop.classify(images)),
    }
    return Way(stages, networks)


def our_way(bundle: Path, picture: Picture, *, copies: int) -> Way:
    """As fvit.load puts a bundle on a CPU, but with watched networks."""
    opened, cores = open_bundle(bundle), len(os.sched_getaffinity(0))
    denoiser, classifier = (
        open_engine(graph, device="cpu", threads=1) for graph in (opened.denoiser, opened.classifier)
    )
    networks = Stopwatch()
    for engine in (denoiser, classifier):
        engine.run = networks.watched(engine.run)  # type: ignore[method-assign]
    manifest = opened.manifest
    pipeline = DenoisedClassifier(
        denoiser, classifier, schedule=manifest.schedule, image_size=manifest.image_size
    )
    queue = Queue([HostCounter(pipeline, rows=ON_CORE, grain=ROWS) for _ in range(cores)])
    sigma = np.full(ON_CORE, SIGMA, np.float32)

    def drawn() -> Floats:
        return noisy_copies(picture.pixels, range(ON_CORE), sigma=SIGMA, key=0)

    noisy = drawn()
    images = pipeline.denoise(noisy, sigma=sigma)
    logits, attribution = pipeline.classify(images)
    tally = Tally(pipeline.classes, pipeline.tokens, (K,))

    def whole() -> None:
        queue.submit(Stretch(picture, range(copies), sigma=SIGMA, key=0, tally=tally.empty())).result()

    threads = ThreadPoolExecutor(cores)

    def stage(run: Callable[[], Any]) -> Timed:
        """Every core takes batches of its own."""
        return lambda: list(threads.map(lambda _: run(), range(0, copies, ON_CORE)))

    stages = {
        "pipeline": whole,
        "noise": stage(drawn),
        "denoiser": stage(lambda: pipeline.denoise(noisy, sigma=sigma)),
        "classifier": stage(lambda: pipeline.classify(images)),
        "accumulation": stage(lambda: tally.empty().add(logits, attribution)),
    }
    return Way(stages, networks, threads=cores)


def measure(model: str, *, rounds: int, copies: int, compiled: bool, folder: Path) -> list[dict[str, Any]]:
    """One row for each way and stage."""
    for precision in ("fp32", "int8"):
        export(model, folder / precision, precision=precision)
    image = compositions(1, seed=83, split="held-out").images[0]
    picture = read_image(image, size=image.shape[:2])
    pixels = np.divide(picture.pixels, 255, dtype=np.float32)
    kinds = ["torch-eager", *(["torch-compile"] if compiled else []), "torch-bf16"]
    ways = {
        (kind, "bf16" if kind == "torch-bf16" else "fp32"): torch_way(model, pixels, kind=kind, copies=copies)
        for kind in kinds
    }
    for precision in ("fp32", "int8"):
        ways["onnxruntime", precision] = our_way(folder / precision, picture, copies=copies)
    seconds: dict[tuple[str, str, str], list[float]] = {}
    outside: dict[tuple[str, str], list[float]] = {}
    with Progress() as progress:
        task = progress.add_task(model, total=rounds + 1)
        for number in range(rounds + 1):
            for key, way in ways.items():
                taken, share = way.round()
                if number == 0:  # compiles and warms up
                    continue
                outside.setdefault(key, []).append(share)
                for stage, each in taken.items():
                    seconds.setdefault((*key, stage), []).append(each)
            progress.advance(task)
    rows = []
    for (name, precision, stage), measured in seconds.items():
        row: dict[str, Any] = {
            "model": model, "name": name, "precision": precision, "stage": stage,
            "copies_per_second": copies / float(np.median(measured)),
        }  # fmt: skip
        if eager := seconds.get(("torch-eager", "fp32", stage)):
            ratios = np.array(eager) / np.array(measured)
            row["ratio_to_torch_eager"] = float(np.median(ratios))
            row["ratio_range"] = [float(ratios.min()), float(ratios.max())]
        if stage == "pipeline":
            row["outside_the_networks"] = float(np.median(outside[name, precision]))
        rows.append(row)
    return rows


def markdown(result: dict[str, Any]) -> str:
    where = result["machine"]
    copies = " or ".join(f"{copies} copies ({model})" for model, copies in result["copies"].items())
    lines = [
        f"{where['cores']} cores of {where['cpu']}, torch {where['torch']}, "
        f"onnxruntime {where['onnxruntime']}; batch {BATCH}, on onnxruntime {ON_CORE} a core; "
        f"{result['rounds']} interleaved rounds of "
        f"{copies}. Ratio: median over rounds (smallest to largest).",
        "",
        "| model | stage | way | precision | copies/s | × torch eager fp32 |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ratio = ""
        if "ratio_to_torch_eager" in row:
            low, high = row["ratio_range"]
            ratio = f"{row['ratio_to_torch_eager']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(
            f"| {row['model']} | {row['stage']} | {row['name']} | {row['precision']} "
            f"| {three_digits(row['copies_per_second'])} | {ratio} |"
        )
    lines += [
        "",
        "Share of the pipeline's time outside the two networks (noise, counting, Python), median:",
        "",
    ]
    lines += [
        f"- {row['model']}, {row['name']} {row['precision']}: {row['outside_the_networks']:.1%}"
        for row in result["rows"]
        if row["stage"] == "pipeline"
    ]
    return "\n".join(lines) + "\n"


def three_digits(rate: float) -> str:
    return f"{rate:,.{max(0, 2 - int(np.floor(np.log10(rate))))}f}"


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    figure = require("matplotlib.figure", extra="plots", purpose="the plot").Figure(
        figsize=(10, 3.5), dpi=150, layout="constrained"
    )
    shown = sorted({row["model"] for row in rows})
    for axes, model in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        whole = [row for row in rows if row["model"] == model and row["stage"] == "pipeline"]
        names = [f"{row['name']}\n{row['precision']}" for row in whole]
        axes.bar(names, [row["copies_per_second"] for row in whole])
        axes.set_title(model)
        axes.set_ylabel("copies per second, whole pipeline")
        axes.tick_params(axis="x", labelsize=6)
    figure.savefig(file)


def main(
    quick: Annotated[bool, typer.Option(help="Two rounds, the demo model, no torch.compile.")] = False,
    model: Annotated[list[str] | None, typer.Option(help="demo, vit-b, or both.")] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 9,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the rows.")] = None,
) -> None:
    rounds = 2 if quick else rounds
    copies = {each: COPIES[each] for each in model or (["demo"] if quick else COPIES)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for each in copies:
            rows += measure(
                each, rounds=rounds, copies=copies[each], compiled=not quick, folder=Path(folder) / each
            )
    result = {"machine": machine(), "rounds": rounds, "copies": copies, "rows": rows}
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")
    if quick or json_file is not None:
        print(markdown(result))
    else:
        publish("throughput", result, markdown(result))
        plot(rows, RESULTS / "throughput.png")


if __name__ == "__main__":
    typer.run(main)
