"""Energy that the processors have taken, where Linux lets it be read."""

from __future__ import annotations

from pathlib import Path

COUNTERS = Path("/sys/class/powercap")


def joules() -> float | None:
    """Of all packages since their counters began (RAPL); None where there is none to read, as in most virtual
    machines and for most users."""
    try:
        # "psys" counts the packages once more, and what lies in a package is counted by that.
        packages = [
            zone
            for zone in sorted(COUNTERS.glob("intel-rapl:[0-9]*"))
            if (zone / "name").read_text().startswith("package")
        ]
        return sum(int((zone / "energy_uj").read_text()) for zone in packages) / 1e6 if packages else None
    except OSError:
        return None
