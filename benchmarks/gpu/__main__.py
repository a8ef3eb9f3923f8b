"""What has this GPU proven, and how fast is it? Everything that is measured on one, in stages.

    python -m benchmarks.gpu [STAGE]... [--engine cuda:0] [--engine tensorrt:0] [--model demo]

Environment, bundles, tests/gpu, latency against torch, profiles, power, callers that share a model; then
tables in benchmarks/results/<gpu>/. Each stage is a process that leaves NAME.json and NAME.log in --out; one
that fails stops no other, and what is there is not done again. STAGE: names or patterns, such as
'latency-demo-*'; "tables" makes the tables of what is there, on any machine. Where torch and TensorRT live
in different environments, run it once in each with the same --out and --bundles, the one with torch first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu.stages import MODELS, PRECISIONS, Stage, chosen, done, run, stages
from benchmarks.gpu.tables import write_tables
from benchmarks.keeping import RESULTS
from fvit.errors import FvitError
from fvit.extras import require

ENGINES = ("cuda:0", "tensorrt:0")


def usable(engine: str) -> None:
    """Raises FvitError where this environment cannot run it."""
    kind = engine.partition(":")[0]
    if kind == "cpu":
        return
    driver: Any = require("pycuda.driver", extra=None, purpose="running on a GPU")
    try:
        driver.init()
    except driver.Error as error:
        raise FvitError(f"no GPU can be used: {error}") from error
    if kind == "tensorrt":
        require("tensorrt", extra="tensorrt", purpose="TensorRT plans")
    elif kind == "cuda":
        runtime = require("onnxruntime", extra=None, purpose="running a bundle")
        if "CUDAExecutionProvider" not in runtime.get_available_providers():
            raise FvitError("onnxruntime is the CPU build: install onnxruntime-gpu in its place")
    else:
        raise FvitError(f"unknown engine '{engine}': use cuda:0, tensorrt:0 or cpu")


def here(engines: list[str]) -> list[str]:
    """Those that can be used here; says why not the others, and ends where there is none."""
    found = []
    for engine in engines:
        try:
            usable(engine)
            found.append(engine)
        except FvitError as error:
            print(f"{engine} left out: {error}")
    if not found:
        raise typer.Exit(1)
    return found


def run_all(todo: list[Stage], out: Path) -> list[str]:
    """Run what is not done; the names of what failed."""
    failed = []
    for stage in todo:
        if done(stage.name, out).exists():
            print(f"{stage.name}: done before")
        elif reason := stage.missing():
            print(f"{stage.name}: left out, {reason}")
        else:
            print(f"{stage.name} …", end=" ", flush=True)
            status, seconds = run(stage, out)
            print(f"{seconds:.0f} s" + (f", FAILED: {out / stage.name}.log" if status else ""), flush=True)
            failed += [stage.name] if status else []
    return failed


def main(
    stage: Annotated[list[str] | None, typer.Argument(help="Names or patterns; all unless told.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="cuda:0, tensorrt:0 or cpu.")] = None,
    model: Annotated[list[str] | None, typer.Option(help=f"{' or '.join(MODELS)}.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="fp32, fp16, int8.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Instead of the models' own.")] = None,
    out: Annotated[Path, typer.Option(help="Where the stages leave what they find.")] = Path("build/gpu"),
    bundles: Annotated[Path, typer.Option(help="MODEL/PRECISION in it.")] = Path("build/gpu-bundles"),
    results: Annotated[Path, typer.Option(help="Where the tables go, in a folder of the device.")] = RESULTS,
    names: Annotated[bool, typer.Option("--names", help="Print the stages and run none.")] = False,
) -> None:
    out, bundles = out.resolve(), bundles.resolve()
    out.mkdir(parents=True, exist_ok=True)
    patterns = list(stage or [])
    models, precisions = model or list(MODELS), precision or list(PRECISIONS)
    if unknown := set(models) - set(MODELS):
        raise typer.BadParameter(f"{', '.join(unknown)}: use {' or '.join(MODELS)}")
    failed: list[str] = []
    if patterns != ["tables"]:
        engines = list(engine or ENGINES)
        found = [
            each
            for one in (engines if names else here(engines))
            for each in stages(
                one, models=models, precisions=precisions, batches=batch or [], bundles=bundles
            )
        ]
        todo = chosen(found, patterns)
        if names:
            print("\n".join(each.name for each in todo))
            return
        failed = run_all(todo, out)
    if not patterns or "tables" in patterns:
        try:
            for file in write_tables(out, results):
                print(file)
        except FvitError as error:
            print(error)
            raise typer.Exit(1) from error
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
