"""What is measured on a GPU, stage by stage, and one stage after another run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Model:
    """How a model is measured. n: copies of the certificates that are timed; whole: the batch of a profile;
    compiled: torch.compile too at `whole`, which takes minutes a batch where a network is large."""

    name: str
    batches: tuple[int, ...]
    repeats: int
    n: tuple[int, ...]
    whole: int
    compiled: bool


MODELS = {
    "demo": Model("demo", (16, 64, 256, 1024), 200, (100, 1000, 10_000), 256, True),
    "vit-b-adm": Model("vit-b-adm", (1, 16, 64), 20, (1000,), 64, False),
}


@dataclass(frozen=True)
class Stage:
    """A program that leaves NAME.json; what it says goes to NAME.log. needs: packages and programs without
    which it is left out; folder: a bundle that it needs; prefix: a program that runs it."""

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    folder: Path | None = None
    prefix: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """Why it cannot run here; None where it can."""
        for need in self.needs:
            if shutil.which(need) is None and importlib.util.find_spec(need) is None:
                return f"needs {need}"
        if self.folder is not None and not self.folder.exists():
            return f"needs the bundle {self.folder}"
        return None


def stages(
    engine: str, *, models: Sequence[str], precisions: Sequence[str], batches: Sequence[int], bundles: Path
) -> Iterator[Stage]:
    """All for one engine ("cuda:0", "tensorrt:0", or "cpu", which lacks what a GPU alone has), in order.

    batches: instead of each model's own, where there are any; the largest is profiled.
    """
    kind, _, index = engine.partition(":")
    on_gpu = kind != "cpu"
    words: tuple[str, ...]
    if on_gpu:
        words = ("-m", "benchmarks.gpu.environment", "--index", index)
        yield Stage(f"environment-{kind}", words, ("pynvml",))
    for name in models:
        for precision in precisions:
            words = ("-m", "benchmarks.gpu.bundles", name, precision, str(bundles / name))
            yield Stage(f"bundle-{name}-{precision}", words, ("torch",))
    if on_gpu:
        tests = "tests/gpu/test_device.py" if kind == "cuda" else "tests/gpu"
        words = ("-m", "benchmarks.gpu.tests", tests)
        yield Stage(f"tests-{kind}", words, ("pytest",))
    for model in (MODELS[name] for name in models):
        for precision in precisions:
            bundle = bundles / model.name / precision
            words = _latency(model, engine, precision=precision, batches=batches, bundles=bundle.parent)
            yield Stage(f"latency-{model.name}-{precision}-{kind}", words, (), bundle)
        if on_gpu and "fp16" in precisions:
            bundle = bundles / model.name / "fp16"
            whole = max(batches, default=model.whole)
            common = (str(bundle), "--device", engine, "--batch", str(whole))
            named = f"{model.name}-fp16-{kind}"
            words = ("-m", "benchmarks.gpu.profile", *common)
            yield Stage(f"profile-{named}", words, (), bundle)
            nsys = ("nsys", "profile", "--trace=cuda,nvtx", "--stats=true", "--force-overwrite=true")
            yield Stage(f"nsys-{named}", words, ("nsys",), bundle, nsys)
            yield Stage(f"power-{named}", ("-m", "benchmarks.gpu.power", *common), ("pynvml",), bundle)
        if model.name == "demo":
            bundle = bundles / "demo" / ("fp16" if on_gpu and "fp16" in precisions else precisions[0])
            words = ("-m", "benchmarks.sharing", str(bundle), "--device", engine, "--seconds", "5")
            yield Stage(f"sharing-{kind}", words, (), bundle)


def _latency(
    model: Model, engine: str, *, precision: str, batches: Sequence[int], bundles: Path
) -> tuple[str, ...]:
    with_torch = not engine.startswith("tensorrt") and importlib.util.find_spec("torch") is not None
    words = ["-m", "benchmarks.latency", "--engine", engine, "--model", model.name, "--precision", precision]
    words += ["--bundles", str(bundles)]
    for size in batches or model.batches:
        words += ["--batch", str(size)]
    if engine != "cpu":  # which has its own measure
        words += ["--repeats", str(model.repeats)]
        words += [word for n in model.n for word in ("--n", str(n))]
    words += ["--torch" if with_torch else "--no-torch"]
    if model.compiled and with_torch:
        words += ["--compiled", str(max(batches, default=model.whole))]
    return tuple(words)


def chosen(found: Sequence[Stage], patterns: Sequence[str]) -> list[Stage]:
    """Those whose names match any of the patterns, as a shell matches; all where there are none. One that
    several engines have comes once."""
    once = {stage.name: stage for stage in found}
    return [each for each in once.values() if not patterns or any(fnmatch(each.name, p) for p in patterns)]


def done(name: str, out: Path) -> Path:
    """The file that a stage leaves when it has succeeded."""
    return out / f"{name}.json"


def run(stage: Stage, out: Path) -> tuple[int, float]:
    """The status of the program and its seconds. What it has written stays NAME.json.part until it ends
    well."""
    part = out / f"{stage.name}.json.part"
    prefix = list(stage.prefix)
    if prefix:
        prefix += ["--output", str(out / stage.name)]
    command = [*prefix, sys.executable, *stage.words, "--json", str(part)]
    start = time.perf_counter()
    with (out / f"{stage.name}.log").open("w") as log:
        log.write(f"{' '.join(command)}\n\n")
        log.flush()
        status = subprocess.run(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ).returncode  # fmt: skip
    if status == 0:
        part.replace(done(stage.name, out))
    return status, time.perf_counter() - start
