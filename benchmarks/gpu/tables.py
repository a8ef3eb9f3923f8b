"""What the stages left, as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import latency, sharing
from benchmarks.gpu.stages import MODELS
from fvit.errors import FvitError

ROW = ("name", "precision", "stage", "batch")
CERTIFICATE = ("name", "precision", "batch", "n")


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result of benchmarks/latency.py from several of one model on one device: where two have measured
    the same, the later one's; versions as the first that knows them says; peaks and operations from whichever
    knows them, and every ratio anew.

    Raises FvitError where they are of different models or devices.
    """
    first = parts[0]
    for part in parts:
        if (part["device"], part["model"]) != (first["device"], first["model"]):
            raise FvitError(
                f"{part['model']} on {part['device']} and {first['model']} on {first['device']} are no table"
            )
    rows = {tuple(row[key] for key in ROW): dict(row) for part in parts for row in part["rows"]}
    timed = {tuple(each[key] for key in CERTIFICATE): each for part in parts for each in part["certificates"]}
    result: dict[str, Any] = {
        "device": first["device"], "model": first["model"],
        "machine": {key: value for part in reversed(parts) for key, value in part["machine"].items()},
        "repeats": min(part["repeats"] for part in parts),
        "flops": max(part["flops"] for part in parts),
        "peaks": {key: value for part in parts for key, value in part["peaks"].items()},
        "rows": list(rows.values()), "certificates": list(timed.values()),
    }  # fmt: skip
    latency.compare(result["rows"], flops=result["flops"], peaks=result["peaks"])
    return result


def gpu_markdown(found: dict[str, dict[str, Any]]) -> str:
    """The GPU, the tests, the profiles and the power. found: what each stage left, by its name."""

    def of(kind: str) -> dict[str, dict[str, Any]]:
        start = f"{kind}-"
        return {name.removeprefix(start): each for name, each in found.items() if name.startswith(start)}

    lines = []
    for name, each in of("environment").items():
        lines += [f"{name}: " + ", ".join(f"{key} {value}" for key, value in each.items()) + ".", ""]
    for name, each in of("tests").items():
        counts = ", ".join(f"{value} {key}" for key, value in each.items() if key != "reasons")
        lines += [f"Tests that need a GPU, {name}: {counts}.", ""]
    if profiles := of("profile"):
        rooms = list(next(iter(profiles.values()))["rooms"])
        lines += [f"| profile | batch | ms | {' | '.join(rooms)} |", "|---" * (3 + len(rooms)) + "|"]
        for name, each in profiles.items():
            cells = " | ".join(f"{each['rooms'][room]:.1%}" for room in rooms)
            lines.append(f"| {name} | {each['batch']} | {each['milliseconds']:.2f} | {cells} |")
        lines.append("")
    if power := of("power"):
        lines += ["| certificate | batch | n | seconds | joules | watts | idle |", "|---" * 7 + "|"]
        lines += [
            f"| {name} | {each['batch']} | {each['n']:,} | {each['seconds']:.2f} | {each['joules']:,.0f} "
            f"| {each['watts']:,.0f} | {each['idle_watts']:,.0f} |"
            for name, each in power.items()
        ]
    return "\n".join(lines).rstrip() + "\n"


def write_tables(out: Path, results: Path) -> list[Path]:
    """From the stages' folder to results/<device>/; what was written. A stage that was broken off counts with
    what it had measured. Raises FvitError where there is nothing."""
    parts = {file.name.partition(".")[0]: file for file in sorted(out.glob("*.json.part"))}
    files = parts | {file.stem: file for file in sorted(out.glob("*.json"))}
    found = {name: json.loads(text) for name, file in files.items() if (text := file.read_text())}
    tables: dict[str, tuple[dict[str, Any], str]] = {}
    device = "unknown"
    for model in MODELS:
        slices = [
            each
            for name, each in found.items()
            if name.startswith("latency-") and each["model"] == model and each["rows"]
        ]
        if slices:
            whole = merged(slices)
            device = whole["device"]
            tables[f"latency-{model}"] = (whole, latency.markdown(whole))
    for name, each in found.items():
        if name.startswith("sharing-"):
            tables[name] = (each, sharing.markdown(each))
        if name.startswith("environment-"):
            device = each["gpu"]
    rest = {name: each for name, each in found.items() if not name.startswith(("latency-", "sharing-"))}
    if rest:
        tables["gpu"] = (rest, gpu_markdown(rest))
    if not tables:
        raise FvitError(f"{out} holds no results: run the stages first")
    folder = results / device.replace(" ", "-").lower()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (result, text) in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        (folder / f"{name}.md").write_text(text)
        written.append(folder / f"{name}.md")
        if name.startswith("latency-"):
            latency.plot(result["rows"], folder / f"{name}.png")
    return written
