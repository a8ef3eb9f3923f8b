"""What the processor multiplies in one go, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

DESCRIBED = Path("/proc/cpuinfo")


def has(instructions: str) -> bool:
    """Whether it names an instruction set with this in its name; False where nothing describes it."""
    return DESCRIBED.exists() and instructions in DESCRIBED.read_text()
