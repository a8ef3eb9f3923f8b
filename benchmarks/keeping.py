"""What benchmarks keep: every measurement as it is done, and the results that are committed."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import track

from fvit.runtime.pictures import written_whole

RESULTS = Path(__file__).parent / "results"


def resumed(
    file: Path, total: int, measure: Callable[[int], dict[str, Any]], *, words: str, at_once: int = 1
) -> list[dict[str, Any]]:
    """measure(i) for i below total, one line of `file` each; what the file holds is not measured again. So
    many at once, in threads: what ends before the one whose turn it is waits for that to be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    if lines and not lines[-1].endswith(b"\n"):  # cut by a kill
        file.write_bytes(b"".join(lines := lines[:-1]))
    done = [json.loads(line) for line in lines]
    left = iter(range(len(done), total))
    with ThreadPoolExecutor(at_once) as pool, file.open("a") as journal:
        under_way = deque(pool.submit(measure, i) for i in islice(left, at_once))
        for _ in track(range(len(done), total), words):
            done.append(under_way.popleft().result())
            journal.write(json.dumps(done[-1]) + "\n")
            journal.flush()
            under_way.extend(pool.submit(measure, i) for i in islice(left, 1))
    return done[:total]


def write_json(file: Path, result: dict[str, Any]) -> None:
    """Write a result whole or not at all, in the place of what the file holds."""
    with written_whole(file) as part:
        part.write_text(_json(result))


def tell(result: dict[str, Any], *, file: Path | None) -> None:
    """Print a result as JSON, and write it to a file where there is to be one."""
    print(_json(result))
    if file is not None:
        write_json(file, result)


def _json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=1, ensure_ascii=False) + "\n"


def publish(name: str, result: dict[str, Any], text: str) -> None:
    """Write a result as JSON and as Markdown to benchmarks/results/, and print the Markdown."""
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", result)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
