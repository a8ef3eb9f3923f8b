"""Energy that the processors have taken, where Linux lets it be read."""

from __future__ import annotations

from pathlib import Path

COUNTERS = Path("/sys/class/powercap")


def joules() -> float | None:
    """Of all packages since their counters began (RAPL); None where there is none to read, as in most virtual
    machines and for most users."""
    try:
        files = [
            file / "energy_uj"
            for file in sorted(COUNTERS.glob("intel-rapl:[0-9]*"))
            if ":" not in file.name[11:]
        ]
        return sum(int(file.read_text()) for file in files) / 1e6 if files else None
    except OSError:
        return None
