from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fvit.engines.base import Engine
from fvit.engines.opening import open_engine
from fvit.errors import FvitError, OutOfMemory
from fvit.runtime.bundle import CLASSIFIER, DENOISER


@pytest.fixture(scope="module")
def classifier(demo_bundle: Path) -> Engine:
    return open_engine(demo_bundle / CLASSIFIER, device="cpu")


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, 64, 64), np.float32)


def test_an_engine_names_its_inputs_and_outputs(classifier: Engine, demo_bundle: Path) -> None:
    assert [(tensor.name, tensor.shape) for tensor in classifier.inputs] == [("images", (None, 3, 64, 64))]
    assert [(tensor.name, tensor.shape) for tensor in classifier.outputs] == [
        ("logits", (None, 10)),
        ("attribution", (None, 64)),
    ]
    denoiser = open_engine(demo_bundle / DENOISER, device="cpu")
    assert [(t.name, t.shape) for t in denoiser.inputs] == [
        ("noisy", (None, 3, 64, 64)),
        ("sigma", (None,)),
        ("timestep", (None,)),
    ]


@pytest.mark.parametrize("size", [1, 3, 8, 19])
def test_a_copys_result_is_the_same_to_the_bit_in_every_batch(size: int, classifier: Engine) -> None:
    """And however many cores share the batch: docs/method.md, section 9, asks it of what is smoothed."""
    images = _images(32)
    whole = classifier.run({"images": images})
    for first in range(0, 32, size):
        part = classifier.run({"images": images[first : first + size]})
        for name, values in part.items():
            assert np.array_equal(values, whole[name][first : first + size])


@pytest.mark.parametrize("batch", [1, 4, 6, 9])
def test_a_graph_of_fixed_batch_is_padded_and_cut(batch: int, tmp_path: Path) -> None:
    shape = [4, 3]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "twice",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("factor", TensorProto.FLOAT, [4, 1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "twice.onnx")
    x = np.random.default_rng(batch).random((batch, 3), np.float32)
    factor = np.arange(batch, dtype=np.float32)[:, None]
    found = open_engine(tmp_path / "twice.onnx", device="cpu").run({"x": x, "factor": factor})
    assert np.array_equal(found["y"], factor * x)


@pytest.mark.parametrize("words", ["CUDA out of memory", "Failed to allocate memory for requested buffer"])
def test_a_device_that_is_full_says_so(
    words: str, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(demo_bundle / CLASSIFIER, device="cpu")

    class Full:
        def run(self, *_: object) -> None:
            raise RuntimeError(words)

    monkeypatch.setattr(engine, "_session", Full())
    with pytest.raises(OutOfMemory, match=f"cpu: {words}"):
        engine.run({"images": _images(2)})


def test_threads_may_share_an_engine(classifier: Engine) -> None:
    batches = [_images(count) for count in range(5, 20)]
    alone = [classifier.run({"images": batch})["logits"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: classifier.run({"images": batch})["logits"], batches))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


def test_devices_that_cannot_be_used_say_what_to_do(demo_bundle: Path) -> None:
    with pytest.raises(FvitError, match="use cpu, or cuda:0"):
        open_engine(demo_bundle / CLASSIFIER, device="gpu")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(FvitError, match="pip install --no-deps onnxruntime-gpu"):
            open_engine(demo_bundle / CLASSIFIER, device="cuda:0")
