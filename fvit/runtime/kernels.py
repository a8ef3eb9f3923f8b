"""The CUDA kernels of kernels.cu: compiled once for each architecture and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from fvit.errors import FvitError

SOURCE = Path(__file__).with_name("kernels.cu")


def cache_folder() -> Path:
    """Where compiled kernels are kept: fvit/ in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fvit"


def compiled(architecture: str, *, cache: Path) -> Path:
    """The cubin for an architecture such as "sm_90", compiled by nvcc where `cache` has none yet.

    A file's name holds the architecture and the hash of the source, so a changed source is compiled
    anew. Raises FvitError where there is no nvcc or it fails.
    """
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    cubin = cache / f"kernels-{architecture}-{digest}.cubin"
    if cubin.exists():
        return cubin
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (home and shutil.which("nvcc", path=f"{home}/bin"))
    if not nvcc:
        raise FvitError(
            "the kernels for this GPU have to be compiled once, and nvcc is not found: install the CUDA "
            "toolkit, and put nvcc on PATH or set CUDA_HOME"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / "made.cubin"
        command = [nvcc, "-cubin", "-fmad=false", f"-arch={architecture}", "-o", str(made), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines()
            raise FvitError(
                f"the kernels for {architecture} cannot be compiled: {words[-1] if words else nvcc}"
            )
        made.replace(cubin)
    return cubin
