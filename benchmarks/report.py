"""How large is the report of 10,000 images, how long does it take to write, and to open in Chromium?

    python -m benchmarks.report [--images 10000]

The records are made up, of 196 tokens, and each has thumbnails as fvit-certify leaves them of a 224-pixel
image. Opened is a report when its figures and its first images are drawn.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from benchmarks.keeping import publish
from benchmarks.machine import machine, peak_megabytes
from fvit import demo
from fvit.certificates.record import Certificate
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.report.build import write_report
from fvit.runtime.journal import NAME
from fvit.runtime.thumbnails import FOLDER, QUALITY, SIDE
from fvit.runtime.truth import write_truth

GRID = (14, 14)
CLASSES = 10
NAMES = list("0123456789")
SIZE = 224
SIGMA = 0.25
OPENINGS = 5

KINDS = 500
"""Records that differ in more than the order of their tokens."""


@dataclass(frozen=True)
class Made:
    """A certificate that was made up, the class that is right, and the plain explanation [N]."""

    certificate: Certificate
    label: int
    plain: NDArray[np.float64]


def made_up(number: int, *, n: int = 300) -> Made:
    """Attention around one place, which is as firm as it happens. One of eight says a wrong class; one of six
    hardly knows any."""
    terms = Terms.of(
        sigma=SIGMA, n=n, alpha=1e-3, k=30, beta=0.8, aggregate="vote", seed=number, size=(SIZE, SIZE)
    )
    rng, tally = np.random.default_rng(number), Tally(CLASSES, GRID[0] * GRID[1], terms.k)
    row, column = np.divmod(np.arange(GRID[0] * GRID[1]), GRID[1])
    away = (row - rng.integers(GRID[0])) ** 2 + (column - rng.integers(GRID[1])) ** 2
    near = np.exp(-away / rng.uniform(4, 30))
    attribution = rng.gamma(1 + rng.uniform(1, 30) * near, size=(n, len(near)))
    attribution /= attribution.sum(axis=1, keepdims=True)
    label = number % CLASSES
    said = (label + (number % 8 == 3)) % CLASSES
    firm = 0.5 if number % 6 == 5 else 4
    logits = rng.normal(size=(n, CLASSES)) + firm * np.eye(CLASSES)[said]
    tally.add(logits.astype(np.float32), attribution.astype(np.float32))
    certificate = Certificate.of(
        tally, terms, image=_name(number), sha256=_digest(number), pixels_sha256=_digest(number),
        labels=NAMES, grid=GRID, engine={"name": "onnxruntime", "device": "cpu", "precision": "fp32"},
        bundle="2" * 64, seconds=1.5,
    )  # fmt: skip
    return Made(certificate, label, attribution[0])


def write_folder(folder: Path, *, images: int, kinds: int) -> None:
    """What fvit-certify --labels leaves of so many images. Those beyond `kinds` have the certificates of the
    first, with their tokens in any order, which compress the less."""
    (folder / FOLDER).mkdir(parents=True)
    made = [made_up(number) for number in range(kinds)]
    records = [each.certificate.to_dict() for each in made]
    strips, plains = _strips(), [_plain(each.plain) for each in made]
    rng = np.random.default_rng(0)
    with (folder / NAME).open("w") as journal:
        for number in range(images):
            record, digest = records[number % kinds], _digest(number)
            if number >= kinds:
                order = rng.permutation(GRID[0] * GRID[1])
                attention = dict(record["attention"])
                for name in ("votes", "sums", "map_radii"):
                    attention[name] = np.asarray(attention[name])[order].tolist()
                attention["tokens"] = np.argsort(order)[attention["tokens"]].tolist()
                record = record | {"image": _name(number), "pixels_sha256": digest, "attention": attention}
            journal.write(json.dumps(record) + "\n")
            (folder / FOLDER / f"{digest}.webp").write_bytes(strips[number % len(strips)])
            (folder / FOLDER / f"{digest}.png").write_bytes(plains[number % kinds])
    right = [(_digest(number), made[number % kinds].label) for number in range(images)]
    write_truth(folder, right, names=NAMES)


def _digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def _name(number: int) -> str:
    return f"images/{number:05d}.png"


def _plain(attribution: NDArray[np.float64]) -> bytes:
    made = io.BytesIO()
    greys = np.rint(255 * attribution / attribution.max()).astype(np.uint8).reshape(GRID)
    Image.fromarray(greys).save(made, format="png")
    return made.getvalue()


def _strips() -> list[bytes]:
    """Of the embedded samples; what is denoised is the image itself."""
    found = []
    for number, file in enumerate(sorted(demo.SAMPLES.glob("*.png"))):
        image = Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        noise = SIGMA * np.random.default_rng(number).normal(size=(SIZE, SIZE, 3))
        noisy = np.clip(np.asarray(image) / 255 + noise, 0, 1)
        strip = Image.new("RGB", (3 * SIDE, SIDE))
        for place, panel in enumerate((image, Image.fromarray((255 * noisy).astype(np.uint8)), image)):
            strip.paste(panel.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (place * SIDE, 0))
        made = io.BytesIO()
        strip.save(made, format="webp", quality=QUALITY)
        found.append(made.getvalue())
    return found


def seconds_to_open(file: Path) -> list[float]:
    """From nothing but a running browser to the first images, each time anew."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise FvitError("no chromium: apt-get install chromium")
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(OPENINGS):
            page = browser.new_page()
            page.set_default_timeout(120_000)
            begun = time.perf_counter()
            page.goto(file.as_uri(), wait_until="commit")
            page.wait_for_selector("body[data-ready]")
            found.append(time.perf_counter() - begun)
            page.close()
        browser.close()
    return found


def main(images: Annotated[int, typer.Option(help="Records in the folder.")] = 10_000) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "made-up"
        write_folder(folder, images=images, kinds=min(images, KINDS))
        begun = time.perf_counter()
        file = write_report(folder)
        writing = time.perf_counter() - begun
        opening = seconds_to_open(file)
        result: dict[str, Any] = {
            "machine": machine(),
            "images": images,
            "tokens": GRID[0] * GRID[1],
            "seconds_to_write": round(writing, 1),
            "memory_megabytes": round(peak_megabytes()),
            "megabytes": round(file.stat().st_size / 1e6, 1),
            "seconds_to_open": [round(each, 2) for each in opening],
        }
    publish("report", result, table(result))


def table(result: dict[str, Any]) -> str:
    opening = result["seconds_to_open"]
    median, slowest = statistics.median(opening), max(opening)
    on = result["machine"]
    return f"""# The report of many images

`python -m benchmarks.report`, {on["cpu"]}, {on["cores"]} cores.

| images | tokens | written in | peak memory | size | opened in Chromium, median | slowest of {len(opening)} |
|---|---|---|---|---|---|---|
| {result["images"]:,} | {result["tokens"]} | {result["seconds_to_write"]:.0f} s \
| {result["memory_megabytes"]} MB | {result["megabytes"]:.1f} MB | {median:.2f} s | {slowest:.2f} s |

Opened is the report when its figures and its first twelve images are drawn.
"""


if __name__ == "__main__":
    typer.run(main)
