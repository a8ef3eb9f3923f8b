"""The CUDA kernels of kernels.cu: compiled once for each architecture and kept."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
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
    """The cubin for an architecture such as "sm_90", compiled by nvcc or NVRTC where `cache` has none yet.

    A file's name holds the architecture and the hash of the source, so a changed source is compiled
    anew. Raises FvitError where there is neither or it fails.
    """
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    cubin = cache / f"kernels-{architecture}-{digest}.cubin"
    if cubin.exists():
        return cubin
    home = os.environ.get("CUDA_HOME")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / "made.cubin"
        if nvcc := shutil.which("nvcc") or (home and shutil.which("nvcc", path=f"{home}/bin")):
            words = _with_nvcc(nvcc, architecture, made)
        elif nvrtc := _nvrtc():
            words = _with_nvrtc(nvrtc, architecture, made)
        else:
            raise FvitError(
                "the kernels for this GPU have to be compiled once, and neither NVRTC nor nvcc is found: "
                "run  pip install nvidia-cuda-nvrtc  (nvidia-cuda-nvrtc-cu12 for CUDA 12), or install the "
                "CUDA toolkit and put nvcc on PATH or set CUDA_HOME"
            )
        if words is not None:
            last = words.strip().splitlines()[-1:] or ["the compiler says nothing"]
            raise FvitError(f"the kernels for {architecture} cannot be compiled: {last[0]}")
        made.replace(cubin)
    return cubin


def _with_nvcc(nvcc: str, architecture: str, made: Path) -> str | None:
    """What the compiler says where it fails."""
    command = [nvcc, "-cubin", "-fmad=false", f"-arch={architecture}", "-o", str(made), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stderr or done.stdout) if done.returncode else None


def _with_nvrtc(nvrtc: ctypes.CDLL, architecture: str, made: Path) -> str | None:
    """What the compiler says where it fails."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.read_bytes(), SOURCE.name.encode(), 0, None, None)
    options = [f"--gpu-architecture={architecture}".encode(), b"--fmad=false"]
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            return log.value.decode()
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, code)
        made.write_bytes(code.raw)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return None


def _nvrtc() -> ctypes.CDLL | None:
    """NVRTC where the loader or pip has it."""
    names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    if (packages := importlib.util.find_spec("nvidia")) is not None:
        folders = map(Path, packages.submodule_search_locations or ())
        names += [str(file) for folder in folders for file in folder.glob("*/lib/libnvrtc.so.*[0-9]")]
    for name in names:
        try:
            if (file := Path(name)).is_absolute():
                # It loads this by name, and the loader does not look where pip puts it.
                for builtins in file.parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(builtins))
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
