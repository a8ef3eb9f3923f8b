"""How long until somebody who has Python alone sees certificates?

    python -m benchmarks.first_certificate

Builds the wheel, which is not timed; then, in a new virtual environment and with pip's cache left aside,
installs it with what it needs from the package index, and certifies the sample images with the embedded
model. Needs a package index.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import fvit
from benchmarks.keeping import publish
from benchmarks.machine import machine
from fvit.demo import SAMPLES
from fvit.errors import FvitError

ROOT = Path(fvit.__file__).parents[1]


def measure(folder: Path) -> dict[str, Any]:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    start = time.perf_counter()
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    subprocess.run(
        [binaries / "pip", "install", "--quiet", "--no-cache-dir", wheel],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    installed = time.perf_counter()
    done = subprocess.run(
        [binaries / "fvit-certify", "demo"], cwd=folder, check=True, capture_output=True, text=True
    )
    ended = time.perf_counter()
    torch = subprocess.run([binaries / "python", "-c", "import torch"], cwd=folder, capture_output=True)
    if torch.returncode == 0:
        raise FvitError("torch was installed with the wheel")
    size = sum(file.stat().st_size for file in (folder / "venv").rglob("*") if file.is_file())
    return {
        "install_seconds": installed - start,
        "certify_seconds": ended - installed,
        "certificates": sum(sample.stem in done.stdout for sample in SAMPLES.glob("*.png")),
        "megabytes": size / 1e6,
    }


def markdown(result: dict[str, Any]) -> str:
    where = result["machine"]
    return (
        f"{where['cores']} cores of {where['cpu']} ({where['instructions']}).\n\n"
        "| | |\n|---|---|\n"
        f"| new environment, `pip install` of the wheel, seconds | {result['install_seconds']:.0f} |\n"
        f"| `fvit-certify demo`, seconds | {result['certify_seconds']:.0f} |\n"
        f"| certificates | {result['certificates']} |\n"
        f"| size of the environment, MB (without torch) | {result['megabytes']:.0f} |\n"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = {"machine": machine()} | measure(Path(folder))
    publish("first_certificate", result, markdown(result))


if __name__ == "__main__":
    main()
