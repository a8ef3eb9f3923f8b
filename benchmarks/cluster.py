"""What does Ray cost over the queue in process, how does it grow with workers, and what does a driver hold?

    python -m benchmarks.cluster BUNDLE [--images 40] [--n 100] [--rounds 3] [--many 10000]

Rates: images/s of the queue in this process and of workers on a Ray cluster, each worker of one core held to
a core of its own, in interleaved rounds; start-up, and the first and last images, when not all are busy, are
left out. Memory: of fvit-certify, with and without --ray, over many small images through a bundle of next to
no cost (benchmarks/standin.py); its rate there is how many images a second one command hands out and keeps.
Last a reckoning of ImageNet's validation images from benchmarks/results/throughput.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.progress import track

import fvit
from benchmarks.keeping import RESULTS, publish
from benchmarks.machine import machine
from benchmarks.standin import pictures, write_stand_in
from fvit.certificates.terms import Terms
from fvit.cluster.driver import Cluster
from fvit.demo.data import compositions
from fvit.runtime.bundle import open_bundle
from fvit.runtime.certifier import Certifier, Here
from fvit.runtime.images import Picture, read_image

SETTLED = 4
"""Images at either end of a run that do not count: not all workers are busy there."""

LOOKS = (1000, 2000, 5000, 10_000)
"""Records after which a command's memory is read."""

IMAGENET, COPIES = 50_000, (100, 1000)
NODES = (1, 4, 16, 64, 256)


def workers() -> list[int]:
    """Processes of fvit's workers on this machine."""
    found = (int(each.parent.name) for each in Path("/proc").glob("[0-9]*/cmdline") if _is_worker(each))
    return sorted(found)


def _is_worker(command: Path) -> bool:
    try:
        return command.read_bytes().startswith(b"ray::Worker")
    except OSError:
        return False


@contextmanager
def nodes(cores: int) -> Iterator[str]:
    """The address of a cluster of one node that offers so many cores."""
    from ray.cluster_utils import Cluster as Nodes

    started = Nodes(initialize_head=True, head_node_args={"num_cpus": cores})
    try:
        yield str(started.address)
    finally:
        started.shutdown()


def rate(
    certifier: Certifier, images: list[Picture], terms: Terms, *, first: Callable[[], Any] = lambda: None
) -> float:
    """Images/s between the SETTLED-th image and the SETTLED-th last; `first` is called when one is done."""
    done: list[float] = []
    with closing(certifier.certify(images, terms, seconds=None, drawn=False, on_copies=None)) as certified:
        for _ in certified:
            if not done:
                first()
            done.append(time.perf_counter())
    return (len(done) - 2 * SETTLED) / (done[-SETTLED - 1] - done[SETTLED - 1])


def rates(bundle: str, *, images: int, n: int, rounds: int) -> dict[str, list[float]]:
    """Images/s in each round, by where they were certified."""
    with fvit.load(bundle) as vit:
        terms = vit.terms(n=n, alpha=0.1, seed=0)
        chosen = [vit.read(image) for image in compositions(images, seed=90, split="held-out").images]

    def here(cores: int) -> float:
        with fvit.load(bundle, cores=cores) as vit:
            return rate(Here(vit), chosen, terms)

    def there(count: int, cores: int) -> float:
        with nodes(count * cores) as address:
            cluster = Cluster(bundle, address=address, device="cpu", batch=None, cores=cores, note=print)
            return rate(cluster, chosen, terms, first=lambda: hold(count) if cores == 1 else None)

    ways = {
        "in process, 1 core": lambda: here(1),
        "1 worker of 1 core": lambda: there(1, 1),
        "2 workers of 1 core": lambda: there(2, 1),
        "in process, 2 cores": lambda: here(2),
        "1 worker of 2 cores": lambda: there(1, 2),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in track(range(rounds), "rounds"):
        for way, measure in ways.items():
            found[way].append(measure())
    return found


def hold(count: int) -> None:
    """So many workers, each to a core of its own."""
    while len(held := workers()) < count:
        time.sleep(0.05)
    for process, core in zip(held, sorted(os.sched_getaffinity(0)), strict=False):
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def memory(bundle: str, folder: Path, out: Path, *words: str) -> dict[str, Any]:
    """Resident megabytes of a command after LOOKS records, and its images/s between the first and last."""
    command = [sys.executable, "-c", "from fvit.commands import certify; certify()", bundle, str(folder)]
    command += ["--n", "24", "--alpha", "0.3", "--seed", "0", "--no-pictures", "--out", str(out), *words]
    journal, found, times = out / "certificates.jsonl", {}, {}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    lines, position = 0, 0
    while process.poll() is None:
        if journal.exists():
            with journal.open("rb") as opened:
                opened.seek(position)
                data = opened.read()
            position, lines = position + len(data), lines + data.count(b"\n")
        for look in LOOKS:
            if lines >= look and look not in found:
                found[look], times[look] = _resident(process.pid), time.perf_counter()
        time.sleep(0.02)
    assert process.returncode == 0
    first, last = min(times), max(times)
    return {
        "megabytes": {str(look): round(found[look], 1) for look in found},
        "images_per_second": (last - first) / (times[last] - times[first]),
    }


def _resident(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


def reading() -> float:
    """Milliseconds of a core to read one photo as ImageNet has them, 500×375 in JPEG, at 224×224."""
    pixels = np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (47, 63, 3), np.uint8)).resize((500, 375))
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "photo.jpg"
        Image.fromarray(pixels).save(file, quality=90)
        start = time.perf_counter()
        for _ in range(50):
            read_image(file, size=(224, 224))
        return (time.perf_counter() - start) / 50 * 1e3


def reckoned(*, efficiency: float) -> list[dict[str, Any]]:
    """Hours for ImageNet's validation images: copies over the copies/s measured on two cores, times nodes."""
    measured = json.loads((RESULTS / "throughput.json").read_text())["rows"]
    speeds = {
        row["precision"]: row["copies_per_second"]
        for row in measured
        if (row["model"], row["stage"], row["name"]) == ("vit-b", "pipeline", "onnxruntime")
    }
    return [
        {
            "precision": precision, "copies": copies, "seconds_an_image": copies / speed,
            "hours": {str(nodes): IMAGENET * copies / speed / nodes / efficiency / 3600 for nodes in NODES},
        }
        for precision, speed in speeds.items()
        for copies in COPIES
    ]  # fmt: skip


def row(first: str, others: Iterable[str]) -> str:
    return f"| {' | '.join([first, *others])} |"


def markdown(result: dict[str, Any]) -> str:
    median = {way: float(np.median(found)) for way, found in result["rates"].items()}
    spread = {way: f"{min(found):.3f} to {max(found):.3f}" for way, found in result["rates"].items()}
    one, other = median["in process, 1 core"], median["in process, 2 cores"]
    compared = {
        "1 worker of 1 core": f"{median['1 worker of 1 core'] / one:.1%} of in process",
        "2 workers of 1 core": f"{result['growth']:.2f} times 1 worker",
        "1 worker of 2 cores": f"{median['1 worker of 2 cores'] / other:.1%} of in process",
    }
    held = result["memory"]
    looks = next(iter(held.values()))["megabytes"]
    lines = [
        f"{result['machine']['cores']} cores of {result['machine']['cpu']}, ray {result['ray']}; "
        f"{result['precision']} bundle, {result['images']} images of n = {result['n']}, "
        f"{result['rounds']} rounds; medians.",
        "",
        "| where | images/s | from to | |",
        "|---|---|---|---|",
        *(f"| {way} | {median[way]:.3f} | {spread[way]} | {compared.get(way, '')} |" for way in median),
        "",
        f"{result['many']:,} images of 8×8 pixels, n = 24, through a bundle of next to no cost; resident "
        "memory of the command:",
        "",
        row("after so many records", held),
        row("---", ("---" for _ in held)),
        *(
            row(f"{int(look):,}", (f"{each['megabytes'][look]:.0f} MB" for each in held.values()))
            for look in looks
        ),
        row("images/s", (f"{each['images_per_second']:.0f}" for each in held.values())),
        "",
        f"Reading a photo of 500×375 in JPEG at 224×224 takes {result['reading_ms']:.1f} ms of a core.",
        "",
        f"**Reckoned, not measured**: hours for ImageNet's {IMAGENET:,} validation images with ViT-B/16 at "
        "224 pixels behind the embedded denoiser, on nodes of two such cores, from the copies/s in "
        f"throughput.md and the {result['growth'] / 2:.0%} that a worker kept of its rate beside another:",
        "",
        row("precision", ("n", "seconds an image on one node", "1 node", *map(str, NODES[1:]))),
        row("---", ("---" for _ in range(2 + len(NODES)))),
        *(
            row(
                each["precision"],
                (
                    f"{each['copies']:,}",
                    f"{each['seconds_an_image']:.3g}",
                    *(f"{hours:,.1f} h" for hours in each["hours"].values()),
                ),
            )
            for each in result["imagenet"]
        ),
    ]
    return "\n".join(lines) + "\n"


def main(
    bundle: Annotated[str, typer.Argument(help="The demo bundle.")],
    images: Annotated[int, typer.Option(help="Of each measurement of a rate.")] = 40,
    n: Annotated[int, typer.Option(help="Copies of each.")] = 100,
    rounds: Annotated[int, typer.Option(help="Of all rates in turn.")] = 3,
    many: Annotated[int, typer.Option(help="Small images, for memory.")] = 10_000,
) -> None:
    result: dict[str, Any] = {
        "machine": machine(), "ray": version("ray"), "precision": open_bundle(bundle).manifest.precision,
        "images": images, "n": n, "rounds": rounds, "many": many,
        "rates": rates(bundle, images=images, n=n, rounds=rounds), "reading_ms": reading(),
    }  # fmt: skip
    result["growth"] = float(
        np.median(result["rates"]["2 workers of 1 core"]) / np.median(result["rates"]["1 worker of 1 core"])
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "images").mkdir()
        for number, pixels in enumerate(pictures(many, seed=0)):
            Image.fromarray(pixels).save(place / "images" / f"{number:06}.png")
        small = write_stand_in(place / "bundle")
        result["memory"] = {
            "in process": memory(str(small), place / "images", place / "here"),
            "--ray": memory(str(small), place / "images", place / "there", "--ray", "local", "--cores", "1"),
        }
    result["imagenet"] = reckoned(efficiency=result["growth"] / 2)
    publish("cluster", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
