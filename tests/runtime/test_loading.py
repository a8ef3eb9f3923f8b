import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fvit
from fvit.engines.opening import open_engine
from fvit.errors import FvitError, OutOfMemory
from fvit.runtime import batching, loading
from fvit.runtime.bundle import MANIFEST
from fvit.runtime.host import DenoisedClassifier, Floats


def test_a_device_that_cannot_be_used_is_one_clear_line(demo_bundle: Path) -> None:
    """Without PyCUDA it names the package, with it and no GPU the driver's reason; never a traceback."""
    with pytest.raises(FvitError, match="pycuda|GPU"):
        fvit.load(demo_bundle, device="cuda:99")
    with pytest.raises(FvitError, match="tensorrt|pycuda|GPU"):
        fvit.load(demo_bundle, device="tensorrt:99")


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is not None, reason="there may be a GPU")
def test_auto_takes_the_cpu_without_a_gpu_and_says_why_not_the_others(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with fvit.load(demo_bundle, device="auto") as vit:
        assert vit.engine["device"] == "cpu"
        why_not = [reason.split(": ", 1) for reason in vit.passed_over]
    assert [device for device, _ in why_not] == ["tensorrt:0", "ort-tensorrt:0", "cuda:0", "openvino"]
    assert all("pycuda" in reason for _, reason in why_not[:3])
    assert why_not[3][1].endswith("pip install 'fvit[openvino]'")


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is not None, reason="there may be a GPU")
@pytest.mark.parametrize("faster", ["openvino", "cpu"])
def test_auto_takes_the_faster_engine_of_the_cpu_measured_once(
    faster: str, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = {"openvino": "openvino", "cpu": "onnxruntime"}
    measured = []

    def seconds(bundle: object, place: loading.Place, rows: int) -> float:
        measured.append(place.pipeline.engine)
        return 1.0 if place.pipeline.engine == names[faster] else 2.0

    monkeypatch.setattr(loading, "_seconds", seconds)
    for _ in range(2):
        with fvit.load(demo_bundle, device="auto") as vit:
            assert vit.engine["device"] == faster
            assert vit.engine["name"] == names[faster]
            assert vit.passed_over[-1].endswith(f"slower than {faster} here")
    assert sorted(measured) == ["onnxruntime", "openvino"]


def test_auto_passes_over_an_engine_whose_results_are_far_off(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    denoise = DenoisedClassifier.denoise

    def wrong(pipeline: DenoisedClassifier, noisy: Floats, *, sigma: Floats) -> Floats:
        images = denoise(pipeline, noisy, sigma=sigma)
        return 1 - images if pipeline.engine == "openvino" else images

    monkeypatch.setattr(DenoisedClassifier, "denoise", wrong)
    with fvit.load(demo_bundle, device="auto") as vit:
        assert vit.engine["device"] == "cpu"
        assert re.fullmatch(r"openvino: its results are \d+% off those of ONNX Runtime", vit.passed_over[-1])


@pytest.mark.parametrize("wrong", ["an error", "no number", "none but one"])
def test_auto_passes_over_an_engine_that_fails_or_gives_no_numbers(
    wrong: str, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    classify = DenoisedClassifier.classify

    def failing(pipeline: DenoisedClassifier, images: Floats) -> tuple[Floats, Floats]:
        logits, attribution = classify(pipeline, images)
        if pipeline.engine == "openvino":
            if wrong == "an error":
                raise RuntimeError("the compiled model is lost")
            attribution = np.full_like(attribution, np.nan)
            logits = logits if wrong == "none but one" else np.full_like(logits, np.nan)
        return logits, attribution

    monkeypatch.setattr(DenoisedClassifier, "classify", failing)
    with fvit.load(demo_bundle, device="auto") as vit:
        assert vit.engine["device"] == "cpu"
        said = "the compiled model is lost" if wrong == "an error" else "its results are nan% off"
        assert vit.passed_over[-1].startswith(f"openvino: {said}")


def test_what_was_measured_and_cannot_be_remembered_is_said(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "fvit").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(loading, "_seconds", lambda *_: 1.0)
    with pytest.raises(FvitError, match=r"cannot write .*engines\.json: .*; give --device cpu or openvino"):
        fvit.load(demo_bundle, device="auto")


@pytest.mark.parametrize("device", ["cuda", "cuda:", "cuda:x", "cuda:0,0", "cuda:0,", "cpu:0", "tpu:0", ""])
def test_a_device_that_is_none_is_refused_with_those_that_are(demo_bundle: Path, device: str) -> None:
    with pytest.raises(FvitError, match=f"unknown device '{device}': use cpu"):
        fvit.load(demo_bundle, device=device)


@pytest.mark.parametrize("batch", [0, -1, 2.0, "x", "", np.array([1, 2])])
def test_a_batch_that_is_none_is_refused(demo_bundle: Path, batch: Any) -> None:
    with pytest.raises(FvitError, match=r"batch = .*: give a number of copies from 1 on, or auto"):
        fvit.load(demo_bundle, batch=batch)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cores": each}, r"^cores = .*: give a number of CPU cores from 1 to 1,024$")
        for each in (0, -1, 2.5, "x", 1025)
    ]
    + [({"device": each}, r"^device = .*: give its name, such as cpu$") for each in (None, 7)]
    + [
        ({"device": f"cuda:{each}"}, r"^unknown device 'cuda:")
        for each in ("9" * 5000, "\N{ARABIC-INDIC DIGIT TWO}")
    ],
)
def test_cores_and_devices_that_are_none_are_refused(
    demo_bundle: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(FvitError, match=message):
        fvit.load(demo_bundle, **asked)


@pytest.mark.parametrize(("precision", "said"), [("int8", "no layer"), ("fp32", "a layer")])
def test_graphs_in_another_precision_than_the_manifest_says_are_refused(
    precision: str, said: str, demo_bundle: Path, int8_bundle: Path, tmp_path: Path
) -> None:
    """Records repeat what it says."""
    forged = tmp_path / "forged"
    shutil.copytree(demo_bundle if precision == "int8" else int8_bundle, forged)
    fields = json.loads((forged / MANIFEST).read_text())
    (forged / MANIFEST).write_text(json.dumps(fields | {"precision": precision}))
    with pytest.raises(FvitError, match=f"precision is {precision}, but {said} of the graphs is in int8"):
        fvit.load(forged)


def test_a_batch_that_memory_does_not_hold_is_refused_with_what_it_does(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutOfMemory, match=r"take .* GB, and .* GB are free: use at most \d+$"):
        fvit.load(demo_bundle, batch=10**12)
    monkeypatch.setattr(loading, "_free_memory", lambda: 10e6)
    with pytest.raises(OutOfMemory, match="use at most") as caught:
        fvit.load(demo_bundle, batch=10**12)
    most = int(str(caught.value).split()[-1])
    with fvit.load(demo_bundle, batch=most) as vit:
        assert vit.rows >= most
    with pytest.raises(OutOfMemory, match=f"use at most {most}$"):
        fvit.load(demo_bundle, batch=most + 1)


def test_the_memory_of_a_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = loading._free_memory()
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("1000000\n")
    monkeypatch.setattr(loading, "LIMITS", (tmp_path / "max", tmp_path / "absent"))
    assert 0.1 * free < loading._free_memory() < 1e15
    monkeypatch.setattr(loading, "LIMITS", (tmp_path / "max", tmp_path / "limit"))
    assert loading._free_memory() == 1e6


def test_the_batch_is_measured_once_and_remembered(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(batching, "SIZES", (8, 16))
    monkeypatch.setattr(loading, "time_of_copy", lambda run, rows: run(rows) or 1.0)
    cores = len(os.sched_getaffinity(0))
    with fvit.load(demo_bundle) as unless_told:
        assert unless_told.rows == 4 * cores
    with fvit.load(demo_bundle, batch="auto") as measured:
        assert measured.rows == 8 * cores  # 16 are not faster

    def measured_again(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(loading, "fastest_batch", measured_again)
    with fvit.load(demo_bundle, batch="auto") as remembered:
        assert remembered.rows == measured.rows


@pytest.mark.parametrize(("device", "engine"), [("cpu", "ONNX Runtime"), ("openvino", "OpenVINO")])
@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link"])
def test_a_graph_reads_no_weights_from_outside_of_its_bundle(
    tmp_path: Path, location: str, device: str, engine: str
) -> None:
    onnx = pytest.importorskip("onnx")
    if device == "openvino":
        pytest.importorskip("openvino")
    (tmp_path / "secret").write_bytes(bytes(64))
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[16])
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [16]) for name in "xy"]
    add = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([add], "g", ends[:1], ends[1:], [weights])
    model = onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 17)])
    (folder / "classifier.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FvitError, match=rf"classifier\.onnx cannot be opened by {engine}: "):
        open_engine(folder / "classifier.onnx", device=device)
