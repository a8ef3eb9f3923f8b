"""Do the tests that need a GPU pass?

python -m benchmarks.gpu.tests tests/gpu [--json FILE]
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.keeping import write_json
from fvit.extras import require


class Outcomes:
    """A plug-in of pytest that counts. found: how many ended how; reasons: why the others were skipped."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.found[report.outcome] += 1
        if report.outcome == "skipped":
            self.reasons[report.nodeid] = str(report.longrepr[-1])


def main(
    folder: Annotated[str, typer.Argument(help="What pytest is to run.")] = "tests/gpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the counts here.")] = None,
) -> None:
    outcomes = Outcomes()
    pytest = require("pytest", extra="dev", purpose="the tests")
    status = int(pytest.main(["-v", "-rs", "-p", "no:cacheprovider", folder], plugins=[outcomes]))
    if json_file is not None:
        write_json(json_file, {**outcomes.found, "reasons": outcomes.reasons})
    raise typer.Exit(status)


if __name__ == "__main__":
    typer.run(main)
