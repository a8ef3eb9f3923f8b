"""docs/triton.md does what it says: its programs run, its tables name what there is."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fvit.runtime.figures import FIGURES
from fvit.triton.repository import LIMITS
from fvit.triton.tensors import INPUTS
from tests.triton.server import HANDBOOK, LIMIT, Triton, block


def localised(program: str, triton: Triton) -> str:
    """The program, at the ports of a server."""
    return program.replace("localhost:8000", f"127.0.0.1:{triton.http}").replace(
        "localhost:8001", f"127.0.0.1:{triton.grpc}"
    )


def test_the_program_over_grpc_runs(
    triton: Triton, samples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(samples[0], tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    program = localised(block("Over gRPC", language="python"), triton).replace("n=(1000", "n=(100")
    exec(program, names)  # the test is that it runs
    record = names["record"]
    assert isinstance(record, dict)
    assert (record["copies"], record["class"]["label"]) == (100, "0")
    triton.until_idle()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_commands_over_http_run(triton: Triton, samples: list[Path], tmp_path: Path) -> None:
    shutil.copy(samples[0], tmp_path / "photo.png")
    commands = localised(block("Over HTTP", language="sh"), triton)
    commands = commands.replace('"n": 1000', '"n": 100').replace('"seconds": 5', '"n": 40')
    done = subprocess.run(
        ["bash", "-euc", commands.replace("curl", "curl -sS")],
        cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=True,
    )  # fmt: skip
    one, *others = re.split("^data: |(?<=\\})data: ", done.stdout, flags=re.MULTILINE)
    answers = [json.loads(each) for each in (one, *others)]
    copies = [json.loads(answer["record"])["copies"] for answer in answers]
    assert (copies[0], copies[-1]) == (100, 40)


def test_every_input_parameter_and_metric_is_explained() -> None:
    text = HANDBOOK.read_text()
    first = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert named >= INPUTS.keys() | LIMITS.keys() | {figure.name for figure in FIGURES}
