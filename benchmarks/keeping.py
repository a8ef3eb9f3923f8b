"""What benchmarks keep: every measurement as it is done, and the results that are committed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import track

RESULTS = Path(__file__).parent / "results"


def resumed(
    file: Path, total: int, measure: Callable[[int], dict[str, Any]], *, words: str
) -> list[dict[str, Any]]:
    """measure(i) for i below total, one line of `file` each; what the file holds is not measured again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    with file.open("a") as journal:
        for i in track(range(len(done), total), words):
            done.append(measure(i))
            journal.write(json.dumps(done[-1]) + "\n")
            journal.flush()
    return done[:total]


def write_json(file: Path, result: dict[str, Any]) -> None:
    """Write a result whole or not at all, in the place of what the file holds."""
    made = file.with_name(file.name + ".made")
    made.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    made.replace(file)


def publish(name: str, result: dict[str, Any], text: str) -> None:
    """Write a result as JSON and as Markdown to benchmarks/results/, and print the Markdown."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
