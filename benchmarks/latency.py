"""How long does a batch take, engine by engine and precision by precision, and how long a certificate?

    python benchmarks/latency.py [--engine cpu|cuda:0|ort-tensorrt:0|tensorrt:0]... [--model demo]

Denoiser, classifier and whole pipeline (noise, denoiser, classifier, counting) as torch eager, torch.compile
and our engines run them, in one run on one device. Batches go in a row, as in a certificate, and the time of
one is that between its end and the end of the batch before: by CUDA events on the stream that the work is
on, by the wall clock on a CPU, where our pipeline is a request to the queue and its answer. Certificates are
timed from call to return. The ratio is to torch eager in the same precision, or in fp32 where torch has no
such precision (int8). fp16 is measured on a GPU only.

Where torch and TensorRT live in different environments, run once with torch and --bundles DIR, and once
more with --no-torch, the same --bundles DIR and --against the first run's JSON: one table comes out.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.clocks import Clock, EventClock, Run, WallClock, in_a_row
from benchmarks.keeping import RESULTS, publish, write_json
from benchmarks.machine import machine
from fvit.certificates.tally import Tally
from fvit.engines.opening import open_engine
from fvit.errors import FvitError, OutOfMemory
from fvit.extras import require
from fvit.runtime.bundle import Bundle, open_bundle
from fvit.runtime.gpu.counter import DeviceCounter
from fvit.runtime.gpu.device import Gpu
from fvit.runtime.gpu.plans import build_plans, open_engines
from fvit.runtime.host import DenoisedClassifier
from fvit.runtime.images import read_image
from fvit.runtime.loading import load
from fvit.runtime.queue import Stretch

SIGMA, K = 0.25, 10
NAMES = {"cpu": "onnxruntime", "cuda": "onnxruntime", "ort-tensorrt": "ort-tensorrt", "tensorrt": "tensorrt"}
WORKSPACE = 4 << 30
IN_A_ROW = 10
console = Console(stderr=True)


@dataclass(frozen=True)
class Way:
    """Something that runs the pipeline at one batch. stages: what runs batches of each; clock: makes what
    their marks read; outside: the share of the pipeline's time outside the networks, megabytes: the device
    memory that it holds, both where they are known."""

    name: str
    precision: str
    batch: int
    stages: Mapping[str, Run]
    clock: Callable[[], Clock]
    outside: Callable[[], float | None]
    megabytes: Callable[[], float | None]


def torch_ways(
    model: str, *, device: str, batches: list[int], precisions: list[str], compiled: list[int]
) -> Iterator[Way]:
    from benchmarks.contenders import TorchModel, release

    for name, its_batches in (("torch-eager", batches), ("torch-compile", compiled)):
        for precision in precisions if its_batches else []:
            half, compile_it = precision == "fp16", name == "torch-compile"
            run = TorchModel(model, device=device, half=half, compiled=compile_it)
            for batch in its_batches:
                stages = run.stages(batch=batch, k=K)
                yield Way(name, precision, batch, stages, run.clock, lambda: None, run.megabytes)
                del stages
            del run
            release()


def our_ways(engine: str, *, batches: list[int], bundles: dict[str, Path]) -> Iterator[Way]:
    make = way_on_cpu if engine == "cpu" else way_on_gpu
    for precision, bundle in bundles.items():
        for batch in batches:
            try:
                yield make(bundle, engine=engine, precision=precision, batch=batch)
            except FvitError as error:
                console.print(f"{engine}, {precision}, batch {batch} left out: {error}", soft_wrap=True)


def way_on_cpu(bundle: Path, *, engine: str, precision: str, batch: int) -> Way:
    """Networks whose rows all cores share; the pipeline as a request of so many copies finds it."""
    opened = open_bundle(bundle)
    size, schedule = opened.manifest.image_size, opened.manifest.schedule
    engines = [open_engine(graph, device="cpu") for graph in (opened.denoiser, opened.classifier)]
    networks = DenoisedClassifier(*engines, schedule=schedule, image_size=size)
    noisy, sigma = np.full((batch, 3, *size), 0.5, np.float32), np.full(batch, SIGMA, np.float32)
    images = networks.denoise(noisy, sigma=sigma)
    vit = load(bundle)

    def pipeline(times: int, mark: Callable[[], None]) -> None:
        for i in range(times):
            vit.queue.submit(stretch(opened, range(i * batch, (i + 1) * batch))).result()
            mark()

    stages = {
        "denoiser": in_a_row(lambda: networks.denoise(noisy, sigma=sigma), wait=lambda: None),
        "classifier": in_a_row(lambda: networks.classify(images), wait=lambda: None),
        "pipeline": pipeline,
    }
    return Way(NAMES[engine], precision, batch, stages, WallClock, lambda: None, lambda: None)


def way_on_gpu(bundle: Path, *, engine: str, precision: str, batch: int) -> Way:
    """Plans that are missing are built."""
    kind, _, index = engine.partition(":")
    opened, gpu = open_bundle(bundle), Gpu(int(index))
    before = free_megabytes(engine)
    if kind == "tensorrt":
        build_plans(opened, gpu, batch=batch, workspace=WORKSPACE)
    engines = open_engines(opened, gpu, device=engine, batch=batch if kind == "tensorrt" else None)
    counter = DeviceCounter(gpu, *engines, schedule=opened.manifest.schedule, rows=batch)

    def pipeline(times: int, mark: Callable[[], None]) -> None:
        """One batch ahead, as the queue has it."""
        begun: deque[Callable[[], object]] = deque()
        for i in range(times):
            copies = range(i * batch, (i + 1) * batch)
            begun.append(counter.begin([(stretch(opened, copies), copies)]))
            mark()
            if len(begun) > counter.ahead:
                begun.popleft()()
        for finish in begun:
            finish()

    def bound(part: int) -> Run:
        work = counter.engines[part].bind(counter.memory)
        launch = gpu.captured(work) if counter.engines[part].capturable else work
        return in_a_row(launch, wait=gpu.wait)

    def outside() -> float:
        """By events before and after the networks of every batch."""
        networks, events = counter.networks, EventClock(gpu)

        def between() -> None:
            events.mark()
            networks()
            events.mark()

        counter.networks = between
        try:
            pipeline(IN_A_ROW, lambda: None)
        finally:
            counter.networks = networks
        gaps = events.milliseconds()[:-1]  # networks, the rest, networks, …, the rest
        return float(gaps[1::2].sum() / gaps.sum())

    def megabytes() -> float | None:
        now = free_megabytes(engine)
        return None if before is None or now is None else before - now

    pipeline(1, lambda: None)  # puts something in every input
    if counter.rows < batch:
        raise OutOfMemory(f"{gpu.name} has no memory for {batch} copies at once")
    stages = {"denoiser": bound(0), "classifier": bound(1), "pipeline": pipeline}
    return Way(NAMES[kind], precision, batch, stages, lambda: EventClock(gpu), outside, megabytes)


def stretch(bundle: Bundle, copies: range) -> Stretch:
    """Copies of a grey picture, counted as for a certificate."""
    manifest = bundle.manifest
    picture = read_image(np.full((*manifest.image_size, 3), 128, np.uint8), size=manifest.image_size)
    tally = Tally(len(manifest.labels), manifest.tokens, (K,))
    return Stretch(picture, copies, sigma=SIGMA, key=0, tally=tally)


def free_megabytes(engine: str) -> float | None:
    """Device memory that nobody holds; None on a CPU."""
    if engine == "cpu":
        return None
    return Gpu(int(engine.partition(":")[2])).free_bytes() / 1e6


def milliseconds(run: Run, *, clock: Callable[[], Clock], repeats: int) -> NDArray[np.float64]:
    """Of one batch, at least `repeats` times."""
    run(3, lambda: None)  # compiles, allocates, chooses algorithms
    taken = []
    for _ in range(-(-repeats // IN_A_ROW)):
        watch = clock()
        run(1 + IN_A_ROW, watch.mark)
        taken.append(watch.milliseconds())
    return np.concatenate(taken)


def measured(way: Way, *, repeats: int) -> list[dict[str, Any]]:
    """A row for each stage."""
    rows = []
    for stage, run in way.stages.items():
        taken = milliseconds(run, clock=way.clock, repeats=repeats)
        p50, p95, p99 = (float(value) for value in np.quantile(taken, [0.5, 0.95, 0.99]))
        whole = stage == "pipeline"
        rows.append(
            {
                "name": way.name, "precision": way.precision, "stage": stage, "batch": way.batch,
                "copies_per_second": 1e3 * way.batch / p50, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
                "outside_networks": way.outside() if whole else None,
                "device_mb": way.megabytes() if whole else None,
            }
        )  # fmt: skip
    return rows


def compare(rows: list[dict[str, Any]], *, flops: float, peaks: dict[str, float]) -> None:
    """Add to each row its ratio to torch eager, and to each pipeline its share of the peak."""
    eager = {
        (row["precision"], row["stage"], row["batch"]): row["p50_ms"]
        for row in rows
        if row["name"] == "torch-eager"
    }
    for row in rows:
        at = (row["stage"], row["batch"])
        known = eager.get((row["precision"], *at), eager.get(("fp32", *at)))
        row["ratio_to_torch_eager"] = None if known is None else known / row["p50_ms"]
        reached = row["copies_per_second"] * flops
        known_peak = peaks.get(row["precision"]) if row["stage"] == "pipeline" else None
        row["share_of_peak"] = None if known_peak is None else reached / known_peak


def certificates(
    engine: str, *, sizes: list[int], bundles: dict[str, Path], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Seconds of whole certificates at the batch that was the fastest."""
    found = []
    name = NAMES[engine.partition(":")[0]]
    for precision, bundle in bundles.items():
        whole = [r for r in rows if (r["name"], r["precision"], r["stage"]) == (name, precision, "pipeline")]
        if not whole:
            continue
        batch = max(whole, key=lambda row: row["copies_per_second"])["batch"]
        with load(bundle, device=engine, batch=None if engine == "cpu" else batch) as vit:
            image = np.full((*vit.pipeline.image_size, 3), 128, np.uint8)
            vit.predict(image, n=max(batch, 32))
            for n in sizes:
                start = time.perf_counter()
                vit.certify(image, sigma=SIGMA, n=n, k=K)
                seconds = time.perf_counter() - start
                found.append(
                    {"name": name, "precision": precision, "batch": batch, "n": n, "seconds": seconds}
                )
    return found


def torch_certificates(
    model: str, *, device: str, sizes: list[int], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Seconds of the copies of whole certificates as research code draws and counts them, in torch eager, at
    the batch that was the fastest; the last batch is a whole one."""
    from benchmarks.contenders import TorchModel, release

    found = []
    for precision in ("fp32", "fp16"):
        at = ("torch-eager", precision, "pipeline")
        whole = [row for row in rows if (row["name"], row["precision"], row["stage"]) == at]
        if not whole:
            continue
        batch = max(whole, key=lambda row: row["copies_per_second"])["batch"]
        run = TorchModel(model, device=device, half=precision == "fp16").stages(batch=batch, k=K)["pipeline"]
        run(2, lambda: None)
        for n in sizes:
            start = time.perf_counter()
            run(-(-n // batch), lambda: None)
            seconds = time.perf_counter() - start
            found.append({"name": at[0], "precision": precision, "batch": batch, "n": n, "seconds": seconds})
        del run
        release()
    return found


def markdown(result: dict[str, Any]) -> str:
    where = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    lines = [
        f"{result['device']}; {where}. Model: {result['model']}, {result['flops'] / 1e9:,.1f} GFLOP a copy; "
        f"at least {result['repeats']} batches each.",
        "",
        "| stage | batch | way | precision | copies/s | p50 ms | p95 ms | p99 ms | × torch eager "
        "| of the matrix peak | outside the networks | device MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["rows"], key=lambda row: (row["stage"], row["batch"])):
        ratio, share = row["ratio_to_torch_eager"], row["share_of_peak"]
        outside, memory = row["outside_networks"], row["device_mb"]
        lines.append(
            f"| {row['stage']} | {row['batch']} | {row['name']} | {row['precision']} "
            f"| {row['copies_per_second']:,.0f} | {row['p50_ms']:.2f} | {row['p95_ms']:.2f} "
            f"| {row['p99_ms']:.2f} | {'' if ratio is None else f'{ratio:.2f}'} "
            f"| {'' if share is None else f'{share:.0%}'} | {'' if outside is None else f'{outside:.1%}'} "
            f"| {'' if memory is None else f'{memory:,.0f}'} |"
        )
    peaks = ", ".join(f"{peak / 1e12:.2f} TFLOP/s in {kind}" for kind, peak in result["peaks"].items())
    lines += ["", f"Peak of a large matrix product in torch: {peaks or 'not measured'}.", ""]
    lines += ["| certificate of n copies | precision | batch | n | seconds |", "|---|---|---|---|---|"]
    lines += [
        f"| {each['name']} | {each['precision']} | {each['batch']} | {each['n']:,} | {each['seconds']:.2f} |"
        for each in result["certificates"]
    ]
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


def made_bundles(model: str, precisions: list[str], folder: Path) -> dict[str, Path]:
    """The model's bundles by precision; those that are missing are exported, which needs torch."""
    found = {precision: folder / precision for precision in precisions}
    for precision, bundle in found.items():
        if not bundle.exists():
            from benchmarks.contenders import export

            with console.status(f"exporting {model} in {precision}"):
                export(model, bundle, precision=precision)
    return found


def device_name(engine: str) -> str:
    if engine == "cpu":
        return str(machine()["cpu"])
    return Gpu(int(engine.partition(":")[2])).name


def main(
    engine: Annotated[
        list[str] | None, typer.Option(help="cpu, cuda:0, ort-tensorrt:0, tensorrt:0; all on one device.")
    ] = None,
    model: Annotated[str, typer.Option(help="demo, vit-b or vit-b-adm.")] = "demo",
    precision: Annotated[
        list[str] | None,
        typer.Option(help="fp32, fp16, int8; all that the device is measured in unless told."),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes.")] = None,
    n: Annotated[list[int] | None, typer.Option(help="Copies of the certificates that are timed.")] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Batches that each is measured on: 30 on a CPU, 200 on a GPU.")
    ] = None,
    with_torch: Annotated[bool, typer.Option("--torch/--no-torch", help="Measure torch too.")] = True,
    compiled: Annotated[
        list[int] | None, typer.Option(help="A batch that torch.compile is measured at too.")
    ] = None,
    bundles: Annotated[
        Path | None, typer.Option(help="Where the model's bundles are, or are to be kept.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Rows of an earlier run on this device to stand beside.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows here instead of to benchmarks/results/.")
    ] = None,
) -> None:
    engines = engine or ["cpu"]
    on_cpu = engines == ["cpu"]
    precisions = precision or (["fp32", "int8"] if on_cpu else ["fp32", "fp16", "int8"])
    batches = batch or ([1, 8, 32] if on_cpu else [1, 16, 64, 256])
    result: dict[str, Any] = {
        "device": device_name(engines[0]), "machine": machine(), "model": model,
        "repeats": repeats or (30 if on_cpu else 200),
        "flops": 0.0, "peaks": {}, "rows": [], "certificates": [],
    }  # fmt: skip
    if against is not None:
        earlier = json.loads(against.read_text())
        if (earlier["device"], earlier["model"]) != (result["device"], model):
            raise typer.BadParameter(f"{against} is of {earlier['model']} on {earlier['device']}")
        result = {**earlier, "machine": earlier["machine"] | result["machine"]}
    rows: list[dict[str, Any]] = result["rows"]
    with tempfile.TemporaryDirectory() as scratch:
        exported = made_bundles(model, precisions, bundles or Path(scratch))
        ways: list[Iterator[Way]] = []
        if with_torch:
            from benchmarks.contenders import flops, peak

            device = "cpu" if on_cpu else f"cuda:{engines[0].partition(':')[2]}"
            kinds = [kind for kind in precisions if kind != "int8"]
            result["flops"] = flops(model)
            result["peaks"] = {kind: peak(device, half=kind == "fp16") for kind in kinds}
            ways.append(
                torch_ways(model, device=device, batches=batches, precisions=kinds, compiled=compiled or [])
            )
        ways += [our_ways(each, batches=batches, bundles=exported) for each in engines]
        for way in itertools.chain.from_iterable(ways):
            with console.status(f"{way.name} {way.precision}, batch {way.batch}"):
                try:
                    rows += measured(way, repeats=result["repeats"])
                except OutOfMemory as error:
                    console.print(f"{way.name}, {way.precision}, batch {way.batch} left out: {error}")
            del way  # its memory, before the next one takes its own
            if json_file is not None:  # what is measured is kept, whatever comes next
                compare(rows, flops=result["flops"], peaks=result["peaks"])
                write_json(json_file, result)
        sizes = n or ([100, 1000] if on_cpu else [100, 1000, 10_000])
        if with_torch:
            result["certificates"] += torch_certificates(model, device=device, sizes=sizes, rows=rows)
        for each in engines:
            result["certificates"] += certificates(each, sizes=sizes, bundles=exported, rows=rows)
    compare(rows, flops=result["flops"], peaks=result["peaks"])
    if json_file is not None:
        write_json(json_file, result)
        print(markdown(result))
        return
    name = f"{result['device'].replace(' ', '-').lower()}/latency-{model}"
    (RESULTS / name).parent.mkdir(parents=True, exist_ok=True)
    publish(name, result, markdown(result))
    plot(rows, RESULTS / f"{name}.png")


if __name__ == "__main__":
    typer.run(main)
