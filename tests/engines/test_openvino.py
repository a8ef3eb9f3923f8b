"""OpenVINO on the CPU: the bundle's own graphs, a copy's result its own, and the precision said."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fvit
from fvit.engines import openvino
from fvit.engines.base import Engine
from fvit.engines.opening import open_engine
from fvit.engines.openvino import OpenVinoEngine
from fvit.errors import FvitError
from fvit.runtime.bundle import CLASSIFIER, open_bundle

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def classifier(demo_bundle: Path) -> Engine:
    return open_engine(demo_bundle / CLASSIFIER, device="openvino", threads=1)


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, 64, 64), np.float32)


def test_it_computes_what_onnx_runtime_computes_to_the_precision_it_names(
    classifier: Engine, demo_bundle: Path
) -> None:
    other = open_engine(demo_bundle / CLASSIFIER, device="cpu")
    assert (classifier.inputs, classifier.outputs) == (other.inputs, other.outputs)
    digits = {"fp32": 1e-4, "bf16": 2e-2}[classifier.precision]
    found, expected = (engine.run({"images": _images(16)}) for engine in (classifier, other))
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= digits * np.abs(values).max()


@pytest.mark.parametrize("sigma", [0.12, 0.25, 1.0])
def test_a_diffusion_model_sees_its_step_as_onnx_runtime_does(sigma: float, teacher_bundle: Path) -> None:
    """Steps are in the hundreds, which bfloat16 counts in twos: a tenth more is further off."""
    bundle = open_bundle(teacher_bundle)
    draw, levels = np.random.default_rng(0), np.full(8, sigma, np.float32)
    noisy = draw.random((8, 3, 8, 8)).repeat(8, axis=2).repeat(8, axis=3)
    noisy = (noisy + sigma * draw.standard_normal(noisy.shape)).astype(np.float32)

    def denoised(device: str, factor: float = 1.0) -> np.ndarray:
        steps = (factor * bundle.manifest.schedule.timestep(levels)).astype(np.float32)
        engine = open_engine(bundle.denoiser, device=device, threads=1)
        return engine.run({"noisy": noisy, "sigma": levels, "timestep": steps})["images"]

    expected = denoised("cpu")
    off = np.abs(denoised("openvino") - expected).mean()
    assert off <= 0.02 * expected.std()
    assert off < np.abs(denoised("cpu", 1.1) - expected).mean() / 2


@pytest.mark.parametrize("size", [1, 3, 8, 19])
def test_a_copys_result_is_the_same_to_the_bit_in_every_batch(size: int, classifier: Engine) -> None:
    """docs/method.md, section 9, asks it of what is smoothed."""
    images = _images(32)
    whole = classifier.run({"images": images})
    for first in range(0, 32, size):
        part = classifier.run({"images": images[first : first + size]})
        for name, values in part.items():
            assert np.array_equal(values, whole[name][first : first + size])


def test_threads_may_share_an_engine_and_compute_the_same_to_the_bit_in_a_graph_each_or_in_one(
    classifier: Engine, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "OWN", 0)
    sharing = open_engine(demo_bundle / CLASSIFIER, device="openvino", threads=1)
    batches = [_images(count) for count in range(5, 20)]
    for engine in (sharing, classifier):
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda batch, of=engine: of.run({"images": batch}), batches))
        for batch, values in zip(batches, found, strict=True):
            for name, expected in classifier.run({"images": batch}).items():
                assert np.array_equal(values[name], expected)


def test_a_certificate_is_the_same_in_every_batch_and_company_and_says_its_engine(
    demo_bundle: Path, samples: list[Path]
) -> None:
    with fvit.load(demo_bundle, device="openvino") as vit:
        fewest = vit.rows
        alone = vit.certify(samples[0], n=60, alpha=0.1, seed=3)
        assert vit.engine["name"] == "openvino" and vit.engine["precision"] in ("fp32", "bf16")
    with fvit.load(demo_bundle, device="openvino", batch=17) as vit, ThreadPoolExecutor(4) as pool:
        assert vit.rows == 3 * fewest
        certified = pool.map(lambda image: vit.certify(image, n=60, alpha=0.1, seed=3), samples[:4])
        together = next(iter(certified))
    one, other = (each.to_dict() | {"seconds": None} for each in (alone, together))
    assert one == other
    assert one["engine"] == vit.engine | {"device": "openvino"}


def test_where_no_further_graph_can_be_compiled_callers_wait_for_those_there_are(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OpenVinoEngine(demo_bundle / CLASSIFIER, precision="fp32", threads=1, callers=4)

    def without_memory() -> None:
        raise RuntimeError("bad allocation\nsecond line")

    monkeypatch.setattr(engine, "_compile", without_memory)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: engine.run({"images": _images(8)})["logits"], range(8)))
    assert all(np.array_equal(each, found[0]) for each in found)


def test_what_openvino_cannot_compute_is_one_line(classifier: Engine) -> None:
    with pytest.raises(FvitError, match=r"^OpenVINO: .*$"):
        classifier.run({"images": np.zeros((8, 3, 32, 32), np.float32)})


def test_a_large_graph_takes_fewer_rows_whoever_calls(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "SMALL", 1e6)
    for callers in (1, 3):
        engine = OpenVinoEngine(demo_bundle / CLASSIFIER, precision="fp32", threads=1, callers=callers)
        assert engine.portion == 2


def test_a_graph_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / CLASSIFIER).write_bytes(b"no graph")
    with pytest.raises(FvitError, match=r"classifier\.onnx cannot be opened by OpenVINO: .*export it again"):
        open_engine(tmp_path / CLASSIFIER, device="openvino")
