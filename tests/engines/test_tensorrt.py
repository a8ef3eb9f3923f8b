"""What of plans needs no GPU: their names, and what is refused. The rest is in tests/gpu."""

import dataclasses
import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fvit.engines.base import Memory
from fvit.engines.tensorrt import PlanKey, TensorRTEngine, find_plan, plan_key, planned_batches
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


class Logger:
    WARNING = 2

    def __init__(self, level: int) -> None:
        pass


class Plan:
    """A plan of 4 rows at a time, as the bindings show it, and its context: noted is where it was run."""

    num_io_tensors = 2

    def __init__(self) -> None:
        self.noted: list[tuple[int, int]] = []
        self._at: dict[str, int] = {}

    def get_tensor_name(self, i: int) -> str:
        return ("images", "logits")[i]

    def get_tensor_dtype(self, name: str) -> type[np.float32]:
        return np.float32

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "images" else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return (4, 3) if name == "images" else (4, 2)

    def create_execution_context(self) -> "Plan":
        return self

    def set_tensor_address(self, name: str, pointer: int) -> None:
        self._at[name] = pointer

    def execute_async_v3(self, stream: int) -> bool:
        self.noted.append((self._at["images"], self._at["logits"]))
        return True


def test_rows_that_are_a_multiple_of_the_plans_are_all_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan()
    bindings = SimpleNamespace(
        Logger=Logger, nptype=lambda kind: kind,
        TensorIOMode=SimpleNamespace(INPUT="in"),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: plan),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "tensorrt", bindings)
    file = tmp_path / "classifier.plan"
    file.write_bytes(b"plan")
    engine = TensorRTEngine(file, device="tensorrt:0", precision="fp32", gpu=nullcontext(), stream=1)
    kind = np.dtype(np.float32)
    engine.bind({"images": Memory(1000, (12, 3), kind, None), "logits": Memory(5000, (12, 2), kind, None)})()
    assert plan.noted == [(1000, 5000), (1048, 5032), (1096, 5064)]
