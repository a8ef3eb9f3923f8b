"""What does each explanation cost, and does it survive another arithmetic?

    python -m benchmarks.explanations [--rounds 7]

Cost: the classifier's graph of each explanation on ONNX Runtime, fp32, batches of 8, in turn within every
round; the embedded model, and DeiT-tiny at 224 pixels (196 tokens, random weights). Milliseconds a copy
are medians over rounds; ratios to `attention` are medians of those within each round.

Arithmetic: the embedded model's attributions of its 12 sample images, in torch in single precision, against
the exported graph's (another order of the same sums) and against torch in half precision; largest
difference in any token, as a share of the largest attribution. For explanations from relevance also with
quotients as published, which are guarded against 0 alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from benchmarks.keeping import publish
from benchmarks.machine import machine
from fvit.demo import SAMPLES, models
from fvit.engines.opening import open_engine
from fvit.errors import FvitError
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.explanations import EXPLANATIONS, propagation
from fvit.export.graphs import export_graph

BATCH = 8
LARGER = "deit_tiny_patch16_224"
FROM_RELEVANCE = tuple(name for name, each in EXPLANATIONS.items() if "relevances" in each.needs)


def classifier(model: str, explanation: str) -> ExplainedClassifier:
    torch.manual_seed(0)
    made = models.load_classifier() if model == "embedded" else timm.create_model(model)
    return ExplainedClassifier(made, explanation=explanation)


def export(explained: ExplainedClassifier, graph: Path) -> None:
    export_graph(
        explained,
        {"images": torch.rand(BATCH, 3, *explained.size, generator=torch.Generator().manual_seed(0))},
        outputs=("logits", "attribution"),
        graph=graph,
        backward=explained.needs_gradients,
    )


def costs(model: str, folder: Path, *, rounds: int) -> dict[str, dict[str, float]]:
    engines = {}
    for explanation in track(EXPLANATIONS, f"exporting {model}"):
        explained = classifier(model, explanation)
        export(explained, graph := folder / f"{model}-{explanation}.onnx")
        engines[explanation] = open_engine(graph, device="cpu")
    feeds = {"images": np.random.default_rng(0).random((BATCH, 3, *explained.size), dtype=np.float32)}
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        engine.run(feeds)
    for _ in track(range(rounds), "rounds"):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.run(feeds)
            taken[name].append((time.perf_counter() - start) / BATCH)
    base = np.array(taken["attention"])
    return {
        name: {
            "milliseconds": 1000 * float(np.median(each)),
            "times": float(np.median(np.array(each) / base)),
        }
        for name, each in taken.items()
    }


def differences(explanation: str, images: torch.Tensor, folder: Path) -> dict[str, float]:
    """Of one explanation in single precision from the graph's, and from half precision."""
    explained = classifier("embedded", explanation)
    single = attributions(explained, images)
    graph = folder / "graph.onnx"
    with suppress(FvitError):  # where it differs by more than is allowed, which is what is asked here
        export(explained, graph)
    ran = open_engine(graph, device="cpu").run({"images": images.numpy()})["attribution"]
    explained.halve()
    half = attributions(explained, images)
    return {"graph": largest(ran, single), "half": largest(half, single)}


def attributions(explained: ExplainedClassifier, images: torch.Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = explained(images)[1].numpy()
    return found


def largest(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float((np.abs(found - expected).max(axis=1) / expected.max(axis=1)).max())


def leading(images: torch.Tensor) -> dict[str, float]:
    """Share of the ten leading tokens that damping leaves in place."""
    shares = {}
    for explanation in FROM_RELEVANCE:
        damped = attributions(classifier("embedded", explanation), images)
        with as_published():
            published = attributions(classifier("embedded", explanation), images)
        pairs = zip(np.argsort(-damped)[:, :10], np.argsort(-published)[:, :10], strict=True)
        shares[explanation] = float(np.mean([len(set(a) & set(b)) / 10 for a, b in pairs]))
    return shares


@contextmanager
def as_published() -> Iterator[None]:
    """With quotients that are not damped."""
    damping, propagation.STABILISER = propagation.STABILISER, 0.0
    try:
        yield
    finally:
        propagation.STABILISER = damping


def main(rounds: Annotated[int, typer.Option(help="Turns of every graph.")] = 7) -> None:
    samples = [Image.open(file).convert("RGB") for file in sorted(SAMPLES.glob("*.png"))]
    pixels = np.stack([np.asarray(sample, np.float32) for sample in samples]).transpose(0, 3, 1, 2) / 255
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cost = {model: costs(model, folder, rounds=rounds) for model in ("embedded", LARGER)}
        arithmetic = {each: differences(each, images, folder) for each in track(EXPLANATIONS, "arithmetic")}
        with as_published():
            published = {each: differences(each, images, folder) for each in FROM_RELEVANCE}
    result = {
        "machine": machine(), "rounds": rounds, "batch": BATCH, "cost": cost, "arithmetic": arithmetic,
        "as published": published, "leading tokens kept": leading(images),
    }  # fmt: skip
    publish("explanations", result, markdown(result))


def markdown(result: dict[str, Any]) -> str:
    where = result["machine"]
    lines = [
        f"{where['cpu']}, {where['cores']} of its cores, ONNX Runtime, fp32, batches of {result['batch']}; "
        f"medians of {result['rounds']} rounds; × is the ratio to `attention`.",
        "",
        f"| explanation | embedded model, ms a copy | × | {LARGER}, ms a copy | × |",
        "|---|---|---|---|---|",
    ]
    for name in EXPLANATIONS:
        cells = [result["cost"][model][name] for model in ("embedded", LARGER)]
        words = " | ".join(f"{cell['milliseconds']:.2f} | {cell['times']:.2f}" for cell in cells)
        lines.append(f"| `{name}` | {words} |")
    lines += [
        "",
        "Largest difference of an attribution, as a share of the image's largest, over the 12 sample images:",
        "",
        "| explanation | graph and torch, single precision | half and single precision, torch |",
        "|---|---|---|",
    ]
    rows = {f"`{name}`": each for name, each in result["arithmetic"].items()}
    rows |= {f"`{name}`, quotients as published": each for name, each in result["as published"].items()}
    lines += [f"| {name} | {each['graph']:.1e} | {each['half']:.1e} |" for name, each in rows.items()]
    kept = ", ".join(f"`{name}` {share:.0%}" for name, share in result["leading tokens kept"].items())
    return "\n".join([*lines, "", f"Of the ten leading tokens damping the quotients keeps: {kept}.", ""])


if __name__ == "__main__":
    typer.run(main)
