"""What the processor is, and what it multiplies in one go, as Linux tells it."""

from __future__ import annotations

import platform
from pathlib import Path

DESCRIBED = Path("/proc/cpuinfo")

INSTRUCTIONS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16",
)  # fmt: skip
"""Sets that products in int8 and bf16 are the faster for, as Linux names them."""


def has(instructions: str) -> bool:
    """Whether it names an instruction set with this in its name; False where nothing describes it."""
    return instructions in _description()


def name() -> str:
    """Its model, or its architecture where nothing tells that."""
    names = [line.partition(": ")[2] for line in _description().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def instructions() -> str:
    """Those of INSTRUCTIONS that it has, between blanks."""
    lines = [line.split() for line in _description().splitlines() if line.startswith(("flags", "Features"))]
    return " ".join(each for each in INSTRUCTIONS if lines and each in lines[0])


def _description() -> str:
    return DESCRIBED.read_text() if DESCRIBED.exists() else ""
