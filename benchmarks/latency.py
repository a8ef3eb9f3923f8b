"""How long does a batch take, on one device, engine by engine and precision by precision?

    python benchmarks/latency.py [--device cpu|cuda:0] [--batch 1 --batch 32 ...] [--json FILE]

The embedded model: denoiser, classifier and whole pipeline (noise, denoiser, classifier, counting), as
torch eager, torch.compile and ONNX Runtime run them, in one run on one device. Percentiles are over repeated
batches; a time ends when the device is done. The ratio is to torch eager in the same precision, or in fp32
where torch has no such precision (int8). fp16 is measured on a GPU only.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track
from torch import Tensor

from benchmarks.keeping import RESULTS, publish
from benchmarks.machine import machine
from fvit.demo import models
from fvit.demo.data import compositions
from fvit.export.bundles import export_demo
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.denoisers import OneShotDenoiser, load_diffusers
from fvit.extras import require
from fvit.runtime.loading import load
from fvit.runtime.smoother import Section, Tally

SIGMA, K = 0.25, 10
SIZE = (64, 64)
Stages = dict[str, Callable[[], object]]


def torch_stages(pixels: Tensor, *, half: bool, compiled: bool, batch: int) -> Stages:
    """The exported modules in torch, on the device that the pixels lie on."""
    diffusion = load_diffusers(models.DENOISER)
    denoiser = OneShotDenoiser(diffusion, image_size=SIZE, output_size=SIZE)
    classifier = ExplainedClassifier(models.load_classifier())
    denoiser.to(pixels.device)
    classifier.to(pixels.device)
    if half:
        denoiser.halve()
        classifier.halve()
    denoise: Callable[..., Tensor] = torch.compile(denoiser) if compiled else denoiser
    classify: Callable[..., Any] = torch.compile(classifier) if compiled else classifier
    level = torch.tensor(SIGMA, device=pixels.device)
    timestep = torch.tensor(diffusion.schedule.timestep(SIGMA), device=pixels.device)
    noisy = pixels + SIGMA * torch.randn(batch, *pixels.shape, device=pixels.device)
    with torch.no_grad():
        images = denoise(noisy, level, timestep).clone()

    def finished(run: Callable[[], object]) -> Callable[[], object]:
        def timed() -> None:
            with torch.no_grad():
                run()
            if pixels.is_cuda:
                torch.cuda.synchronize(pixels.device)

        return timed

    def whole() -> None:
        drawn = pixels + SIGMA * torch.randn(batch, *pixels.shape, device=pixels.device)
        logits, attribution = classify(denoise(drawn, level, timestep))
        logits.argmax(1).bincount(minlength=logits.shape[1]).tolist()
        attribution.topk(K, dim=1).indices.flatten().bincount(minlength=attribution.shape[1]).tolist()

    return {
        "denoiser": finished(lambda: denoise(noisy, level, timestep)),
        "classifier": finished(lambda: classify(images)),
        "pipeline": finished(whole),
    }


def our_stages(bundle: Path, pixels: np.ndarray[Any, Any], *, device: str, batch: int) -> Stages:
    """The bundle on an engine. On a GPU only the whole pipeline keeps its data there, so only it is
    comparable and measured."""
    vit = load(bundle, device=device, batch=batch)
    smoother = vit._smoother

    def whole() -> None:
        tally = Tally(vit.pipeline.classes, vit.pipeline.tokens, (K,))
        for _ in smoother.run([Section(pixels, range(batch), tally)], sigma=SIGMA, seed=0):
            pass

    if device != "cpu":
        return {"pipeline": whole}
    noisy = np.repeat(pixels[None], batch, axis=0)
    return {
        "denoiser": lambda: vit.pipeline.denoise(noisy, sigma=SIGMA),
        "classifier": lambda: vit.pipeline.classify(noisy),
        "pipeline": whole,
    }


def milliseconds(run: Callable[[], object], *, repeats: int) -> np.ndarray[Any, Any]:
    for _ in range(3):  # compiles, allocates, chooses algorithms
        run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(1e3 * (time.perf_counter() - start))
    return np.array(taken)


def ways(
    pixels: np.ndarray[Any, Any], *, device: str, batch: int, bundles: dict[str, Path], compiled: bool
) -> Iterator[tuple[str, str, Stages]]:
    """(name, precision, stages), torch eager first."""
    there = torch.from_numpy(pixels).to(device)
    kinds = [("torch-eager", False), ("torch-compile", True)] if compiled else [("torch-eager", False)]
    for name, compile_it in kinds:
        for precision in ("fp32", "fp16") if there.is_cuda else ("fp32",):
            half = precision == "fp16"
            yield name, precision, torch_stages(there, half=half, compiled=compile_it, batch=batch)
    for precision, bundle in bundles.items():
        yield "onnxruntime", precision, our_stages(bundle, pixels, device=device, batch=batch)


def measure(*, device: str, batches: list[int], repeats: int, compiled: bool, folder: Path) -> list[Any]:
    on_gpu = device != "cpu"
    bundles = {}
    for precision in ("fp32", "fp16", "int8") if on_gpu else ("fp32", "int8"):
        bundles[precision] = folder / precision
        export_demo(bundles[precision], precision=precision)
    image = compositions(1, seed=83, split="held-out").images[0]
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / np.float32(255)
    rows: list[dict[str, Any]] = []
    eager: dict[tuple[str, str, int], float] = {}
    for batch in track(batches, "batch sizes"):
        found = ways(pixels, device=device, batch=batch, bundles=bundles, compiled=compiled)
        for name, precision, stages in found:
            for stage, run in stages.items():
                taken = milliseconds(run, repeats=repeats)
                p50, p95, p99 = (float(value) for value in np.quantile(taken, [0.5, 0.95, 0.99]))
                if name == "torch-eager":
                    eager[precision, stage, batch] = p50
                known = eager.get((precision, stage, batch), eager["fp32", stage, batch])
                rows.append(
                    {
                        "name": name, "precision": precision, "stage": stage, "batch": batch,
                        "copies_per_second": 1e3 * batch / p50, "p50_ms": p50, "p95_ms": p95,
                        "p99_ms": p99, "ratio_to_torch_eager": known / p50,
                    }
                )  # fmt: skip
    return rows


def markdown(result: dict[str, Any]) -> str:
    where = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    lines = [
        f"{result['device']}; {where}; {result['repeats']} batches each.",
        "",
        "| stage | batch | way | precision | copies/s | p50 ms | p95 ms | p99 ms | × torch eager |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["rows"], key=lambda row: (row["stage"], row["batch"])):
        lines.append(
            f"| {row['stage']} | {row['batch']} | {row['name']} | {row['precision']} "
            f"| {row['copies_per_second']:,.0f} | {row['p50_ms']:.2f} | {row['p95_ms']:.2f} "
            f"| {row['p99_ms']:.2f} | {row['ratio_to_torch_eager']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    figure = require("matplotlib.figure", extra="plots", purpose="the plot").Figure(
        figsize=(6, 4), dpi=150, layout="constrained"
    )
    axes = figure.subplots()
    whole = [row for row in rows if row["stage"] == "pipeline"]
    for way in dict.fromkeys((row["name"], row["precision"]) for row in whole):
        points = [row for row in whole if (row["name"], row["precision"]) == way]
        axes.plot(
            [row["batch"] for row in points], [row["copies_per_second"] for row in points],
            marker="o", label=" ".join(way),
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xlabel("batch")
    axes.set_ylabel("copies per second, whole pipeline")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(file)


def main(
    device: Annotated[str, typer.Option(help="cpu, or cuda:0 for the first GPU.")] = "cpu",
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes.")] = None,
    repeats: Annotated[int, typer.Option(help="Batches timed for each row.")] = 30,
    compiled: Annotated[bool, typer.Option(help="Measure torch.compile too.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows here instead of to benchmarks/results/.")
    ] = None,
) -> None:
    where = torch.cuda.get_device_name(device) if device != "cpu" else str(machine()["cpu"])
    batches = batch or ([1, 8, 32] if device == "cpu" else [1, 16, 64, 256])
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(
            device=device, batches=batches, repeats=repeats, compiled=compiled, folder=Path(folder)
        )
    result = {"device": where, "machine": machine(), "repeats": repeats, "rows": rows}
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")
        print(markdown(result))
        return
    name = f"{where.replace(' ', '-').lower()}/latency"
    (RESULTS / name).parent.mkdir(parents=True, exist_ok=True)
    publish(name, result, markdown(result))
    plot(rows, RESULTS / f"{name}.png")


if __name__ == "__main__":
    typer.run(main)
