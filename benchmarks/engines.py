"""Which engine of the CPU is the faster?

    python -m benchmarks.engines BUNDLE... [--rounds 7]

One certificate of n = 400 by ONNX Runtime and by OpenVINO in turn, within every round, on all cores, so that
a slow minute of the machine meets both. Ratios are of copies a second and are taken inside each round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

import fvit
from benchmarks.keeping import publish
from benchmarks.machine import machine
from fvit.demo.data import compositions
from fvit.runtime.loading import ON_CPU

N = 400


def in_turn(
    vits: Mapping[str, fvit.FaithfulViT], *, rounds: int, words: str
) -> dict[str, NDArray[np.float64]]:
    """Copies a second of each, [rounds], with one certificate of n = 400 of each in every round."""
    image = compositions(1, seed=85, split="held-out").images[0]
    rates: dict[str, list[float]] = {name: [] for name in vits}
    for vit in vits.values():
        vit.certify(image, n=N // 4, alpha=0.1)
    for turn in track(range(rounds), words):
        for name in vits if turn % 2 else reversed([*vits]):
            start = time.perf_counter()
            vits[name].certify(image, n=N, seed=turn)
            rates[name].append(N / (time.perf_counter() - start))
    return {name: np.array(each) for name, each in rates.items()}


def compare(bundle: str, *, rounds: int) -> dict[str, Any]:
    with ExitStack() as opened:
        vits = {device: opened.enter_context(fvit.load(bundle, device=device)) for device in ON_CPU}
        rates = in_turn(vits, rounds=rounds, words=bundle)
        ratios = rates["openvino"] / rates["cpu"]
        return {
            "bundle": vits["cpu"].bundle.manifest.precision,
            "precision": {device: vit.engine["precision"] for device, vit in vits.items()},
            "copies_per_second": {device: float(np.median(each)) for device, each in rates.items()},
            "ratio": float(np.median(ratios)),
            "ratio_range": [float(ratios.min()), float(ratios.max())],
        }


def markdown(result: dict[str, Any]) -> str:
    where = result["machine"]
    lines = [
        f"{where['cores']} cores of {where['cpu']} ({where['instructions']}), {result['rounds']} rounds of "
        f"certify(n = {N}) in turn. Ratio: median over rounds (smallest to largest).",
        "",
        "| bundle | ONNX Runtime, copies/s | OpenVINO, copies/s | which computes in | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["ratio_range"]
        rates, computes = row["copies_per_second"], row["precision"]["openvino"]
        lines.append(
            f"| {row['bundle']} | {rates['cpu']:.0f} | {rates['openvino']:.0f} | {computes} "
            f"| {row['ratio']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main(
    bundles: Annotated[list[str], typer.Argument(help="Bundles of the demo.")],
    rounds: Annotated[int, typer.Option(help="Certificates of each engine.")] = 7,
) -> None:
    rows = [compare(bundle, rounds=rounds) for bundle in bundles]
    result = {"machine": machine(), "rounds": rounds, "rows": rows}
    publish("engines", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
