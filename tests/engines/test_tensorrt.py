"""What of plans needs no GPU: their names, and what is refused. The rest is in tests/gpu."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from fvit.engines.tensorrt import PlanKey, find_plan, plan_key, planned_batches
from fvit.errors import FvitError
from fvit.extras import MissingExtra

KEY = PlanKey("NVIDIA H100 80GB HBM3", "9.0", "8.6.0", "fp16", 64, "0123456789abcdef" * 4)
GRAPH = Path("classifier.onnx")


def test_a_plan_of_anything_else_has_another_name(tmp_path: Path) -> None:
    others = [
        dataclasses.replace(KEY, **change)
        for change in (
            {"gpu": "NVIDIA H200"}, {"capability": "8.9"}, {"tensorrt": "10.9.0"}, {"precision": "int8"},
            {"batch": 32}, {"graph": "f" * 64},
        )
    ]  # fmt: skip
    names = {key.file(tmp_path, GRAPH) for key in [KEY, *others]}
    names.add(KEY.file(tmp_path, Path("denoiser.onnx")))
    assert len(names) == len(others) + 2
    assert all(name.parent == tmp_path / "engines" and name.suffix == ".plan" for name in names)


def test_a_plan_that_fits_is_found_and_any_other_is_refused_with_the_command(tmp_path: Path) -> None:
    built = KEY.file(tmp_path, GRAPH)
    with pytest.raises(FvitError, match=r"no TensorRT plan .* fvit-export engine .* --batch 64"):
        find_plan(tmp_path, GRAPH, KEY)
    built.parent.mkdir()
    built.write_bytes(b"plan")
    assert find_plan(tmp_path, GRAPH, KEY) == built
    other = dataclasses.replace(KEY, tensorrt="10.9.0", batch=32)
    with pytest.raises(FvitError, match=rf"only {built.name}: build it with .* --batch 32"):
        find_plan(tmp_path, GRAPH, other)


def test_the_batches_that_plans_are_there_for_are_found(tmp_path: Path) -> None:
    plans = [dataclasses.replace(KEY, batch=batch).file(tmp_path, GRAPH) for batch in (8, 128)]
    plans += [dataclasses.replace(KEY, batch=256, **other).file(tmp_path, GRAPH)
              for other in ({"gpu": "NVIDIA H200"}, {"precision": "int8"}, {"graph": "f" * 64})]  # fmt: skip
    plans.append(dataclasses.replace(KEY, batch=512).file(tmp_path, Path("denoiser.onnx")))
    plans[0].parent.mkdir()
    for plan in plans:
        plan.write_bytes(b"plan")
    assert planned_batches(tmp_path, GRAPH, KEY) == {8, 128}


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_missing_tensorrt_names_its_extra() -> None:
    with pytest.raises(MissingExtra, match=r"fvit\[tensorrt\]"):
        plan_key(gpu="H100", capability=(9, 0), precision="fp32", batch=1, graph="0" * 64)
