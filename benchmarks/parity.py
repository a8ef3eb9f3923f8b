"""Do full-sized models export, and how far are their graphs from torch?

    python -m benchmarks.parity [--model NAME]...

Random weights. Every explanation that a model has, in fp32 and in fp16, at batch 5 and 1, against the
fp32 module in torch; then the 256x256 ADM denoiser of the papers at 224 pixels. Each export runs in its
own process, whose peak memory is recorded; a failed one is recorded too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from rich.progress import track

from benchmarks.contenders import published_adm
from benchmarks.keeping import RESULTS
from benchmarks.machine import peak_megabytes
from fvit.errors import FvitError
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.denoisers import OneShotDenoiser
from fvit.export.explanations import EXPLANATIONS, OF_LAST_BLOCK
from fvit.export.graphs import export_graph

CLASSIFIERS = (
    "vit_base_patch16_224",
    "deit_small_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "beit_base_patch16_224",
    "vit_small_patch14_reg4_dinov2",
)
ADM = "256x256_diffusion_uncond"
LARGE = "vit_large_patch16_224"


def cases(models: list[str]) -> list[tuple[str, str, str]]:
    """(model, explanation, precision)."""
    found = []
    for model in models:
        explanations = OF_LAST_BLOCK if model.startswith("swin") else tuple(EXPLANATIONS)
        if model in (ADM, LARGE):
            explanations = ("attention",) if model == LARGE else ("",)
        found += [(model, e, precision) for precision in ("fp32", "fp16") for e in explanations]
    return found


def export(model: str, explanation: str, precision: str, graph: Path) -> float:
    """Export one graph; its largest relative error."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    half = precision == "fp16"
    if model == ADM:
        diffusion = published_adm()
        denoiser = OneShotDenoiser(diffusion, image_size=(224, 224), output_size=(224, 224))
        inputs = {
            "noisy": torch.rand(2, 3, 224, 224, generator=draw),
            "sigma": torch.tensor([0.25, 0.5]),
            "timestep": torch.tensor([float(diffusion.schedule.timestep(level)) for level in (0.25, 0.5)]),
        }
        return export_graph(denoiser, inputs, outputs=("images",), graph=graph, half=half)
    options = {} if timm.get_pretrained_cfg(model).num_classes else {"num_classes": 1000}
    explained = ExplainedClassifier(timm.create_model(model, **options), explanation=explanation)
    images = torch.rand(5, 3, *explained.size, generator=draw)
    return export_graph(
        explained,
        {"images": images},
        outputs=("logits", "attribution"),
        graph=graph,
        backward=explained.needs_gradients,
        half=half,
    )


def child(model: str, explanation: str, precision: str) -> dict[str, Any]:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.onnx"
        try:
            outcome: dict[str, Any] = {"error": export(model, explanation, precision, graph)}
        except FvitError as error:
            outcome = {"failed": str(error)}
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    outcome |= {"megabytes": size / 1e6, "peak_gigabytes": peak_megabytes() / 1e3}
    return outcome | {"seconds": time.perf_counter() - start}


def main(
    model: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    case: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    if case is not None:
        print(json.dumps(child(*case.split(":"))))
        return
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "parity.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    for each in track(cases(model or [*CLASSIFIERS, LARGE, ADM]), "exporting"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.parity", "--case", ":".join(each)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            failed = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            outcome: dict[str, Any] = {"failed": failed}
        else:
            outcome = json.loads(done.stdout.splitlines()[-1])
        names = dict(zip(("model", "explanation", "precision"), each, strict=True))
        rows = [row for row in rows if not names.items() <= row.items()] + [names | outcome]
        file.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
        (RESULTS / "parity.md").write_text(markdown(rows))
    print(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | explanation | precision | max relative error | size | peak memory | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = f"{row['error']:.1e}" if "error" in row else f"failed: {row['failed']}"
        rest = ["", "", ""]
        if "seconds" in row:
            rest = [
                f"{row['megabytes']:,.0f} MB", f"{row['peak_gigabytes']:.1f} GB", f"{row['seconds']:.0f}"
            ]  # fmt: skip
        lines.append(
            f"| {row['model']} | {row['explanation']} | {row['precision']} | {error} | {' | '.join(rest)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
