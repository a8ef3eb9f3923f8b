"""What a result was measured on."""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fvit.engines import processor


def machine() -> dict[str, str | int]:
    """CPU and its instruction sets that matter, cores that this process may use, and the versions of what ran
    (imports none of it)."""
    found: dict[str, str | int] = {
        "cpu": processor.name(),
        "instructions": processor.instructions(),
        "cores": len(os.sched_getaffinity(0)),
    }
    return found | versions("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "numpy")


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed; imports none of them."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_megabytes() -> float:
    """Peak resident memory of this program. `getrusage` would count what its parent held before exec."""
    return _status("VmHWM")


def resident_megabytes() -> float:
    """Resident memory of this program now."""
    return _status("VmRSS")


class _Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    )  # fmt: skip


def allocated_megabytes() -> float:
    """What this program has allocated by malloc and not freed. Raises AttributeError without glibc 2.33."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Mallinfo
    found = ask()
    return float(found.uordblks + found.hblkhd) / 1e6


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6
