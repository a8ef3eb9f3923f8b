"""What benchmarks/gpu makes of its stages."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.profile import WAITING, by_room, shares
from benchmarks.gpu.stages import Stage, chosen, done, run, stages
from benchmarks.gpu.tables import merged, write_tables
from fvit.errors import FvitError


def part(name: str, ms: float, *, precision: str = "fp16", **changed: Any) -> dict[str, Any]:
    row = {
        "name": name, "precision": precision, "stage": "pipeline", "batch": 64,
        "copies_per_second": 64e3 / ms,
        "p50_ms": ms, "p95_ms": ms, "p99_ms": ms, "outside_networks": None, "device_mb": None,
    }  # fmt: skip
    return {
        "device": "GPU", "machine": {name: "1"}, "model": "demo", "repeats": 20, "flops": 0.0, "peaks": {},
        "rows": [row], "certificates": [], **changed,
    }  # fmt: skip


def test_slices_of_several_environments_make_one_table() -> None:
    torch = part("torch-eager", 40.0, flops=1e9, peaks={"fp16": 16e12})
    eager32 = part("torch-eager", 80.0, precision="fp32")
    found = merged([torch, part("tensorrt", 10.0), eager32, part("tensorrt", 20.0, precision="int8")])
    ratios = {(row["name"], row["precision"]): row["ratio_to_torch_eager"] for row in found["rows"]}
    assert ratios[("tensorrt", "fp16")] == 4.0
    assert ratios[("tensorrt", "int8")] == 4.0  # torch has no int8: against its fp32
    peak = next(row["share_of_peak"] for row in found["rows"] if row["name"] == "tensorrt")
    assert peak == pytest.approx(6400 * 1e9 / 16e12)
    assert found["machine"] == {"torch-eager": "1", "tensorrt": "1"}


def test_what_is_measured_again_replaces_what_was() -> None:
    found = merged([part("tensorrt", 10.0), part("tensorrt", 8.0)])
    assert [row["p50_ms"] for row in found["rows"]] == [8.0]


def test_two_devices_are_no_table() -> None:
    with pytest.raises(FvitError, match="no table"):
        merged([part("tensorrt", 10.0), part("tensorrt", 8.0, device="other")])


def test_shares_of_a_profile_add_up_and_gaps_are_waiting() -> None:
    found = shares([("upload", 0, 1), ("denoiser", 1, 7), ("classifier", 8, 9), ("find_classes", 9, 10)])
    assert found == {WAITING: 0.1, "upload": 0.1, "denoiser": 0.6, "classifier": 0.1, "find_classes": 0.1}
    rooms = by_room(found)
    assert rooms["networks"] == pytest.approx(0.7)
    assert sum(rooms.values()) == pytest.approx(1.0)


def test_stages_are_chosen_by_pattern_and_once(tmp_path: Path) -> None:
    both = [
        stage
        for engine in ("cuda:0", "tensorrt:0")
        for stage in stages(
            engine, models=["demo", "vit-b-adm"], precisions=["fp32", "fp16"], batches=[], bundles=tmp_path
        )
    ]
    names = [stage.name for stage in chosen(both, [])]
    assert len(names) == len(set(names))
    found = [stage.name for stage in chosen(both, ["latency-demo-*", "tests-cuda"])]
    assert found == [
        "tests-cuda", "latency-demo-fp32-cuda", "latency-demo-fp16-cuda", "latency-demo-fp32-tensorrt",
        "latency-demo-fp16-tensorrt",
    ]  # fmt: skip


def test_a_stage_that_fails_leaves_its_log_and_part_and_is_not_done(tmp_path: Path) -> None:
    code = "import sys, pathlib; pathlib.Path(sys.argv[2]).write_text('{}'); print('said'); sys.exit({})"
    for status in (3, 0):
        stage = Stage("stage", ("-c", code.replace("exit({})", f"exit({status})")))
        assert run(stage, tmp_path)[0] == status
        assert (tmp_path / "stage.json.part").exists() == bool(status)
        assert done("stage", tmp_path).exists() == (not status)
        assert "said" in (tmp_path / "stage.log").read_text()
        assert sys.executable in (tmp_path / "stage.log").read_text()


def test_tables_of_what_was_broken_off_are_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "latency-demo-fp16-cuda.json").write_text(json.dumps(part("onnxruntime", 20.0)))
    (tmp_path / "latency-demo-fp16-tensorrt.json.part").write_text(json.dumps(part("tensorrt", 10.0)))
    (tmp_path / "environment-cuda.json").write_text(json.dumps({"gpu": "GPU", "driver": "1"}))
    written = write_tables(tmp_path, tmp_path / "results")
    assert {file.name for file in written} == {"latency-demo.md", "gpu.md"}
    text = (tmp_path / "results" / "gpu" / "latency-demo.md").read_text()
    assert "| tensorrt | fp16 |" in text
    assert "| onnxruntime | fp16 |" in text
    with pytest.raises(FvitError, match="holds no results"):
        write_tables(tmp_path / "results", tmp_path)
