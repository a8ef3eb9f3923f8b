"""What needs a GPU: the kernels and ONNX Runtime's CUDA provider, against the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fvit
from fvit.certificates.tally import Tally
from fvit.errors import FvitError, OutOfMemory
from fvit.runtime.gpu.counter import Accumulators, placed
from fvit.runtime.host import noisy_copies


@pytest.fixture(scope="module")
def device() -> Any:
    from fvit.runtime.gpu.device import Gpu

    return Gpu(0)


@pytest.fixture(scope="module")
def on_gpu(demo_bundle: Path) -> fvit.FaithfulViT:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    return fvit.load(demo_bundle, device="cuda:0")


@pytest.mark.parametrize("first", [0, 2**32 - 3])
def test_copies_equal_the_hosts(device: Any, first: int) -> None:
    pixels = np.random.default_rng(0).random((3, 61, 67), np.float32)
    copies = range(first, first + 90)
    noisy, there = device.allocate((100, *pixels.shape), np.float32), placed(pixels, device)
    device.draw(noisy, row=10, pixels=there, copies=copies, sigma=1.0, seed=2**63 + 1)
    found = device.download(noisy)[10:]
    assert np.abs(found - noisy_copies(pixels, copies, sigma=1.0, seed=2**63 + 1)).max() <= 2e-6


@pytest.mark.parametrize(("rows", "classes", "tokens"), [(1, 2, 4), (37, 10, 64), (256, 1000, 196)])
def test_reductions_equal_the_tallys(device: Any, rows: int, classes: int, tokens: int) -> None:
    rng = np.random.default_rng(rows)
    logits = rng.normal(size=(rows, classes)).astype(np.float32).round(1)
    attribution = (rng.gamma(0.3, size=(rows, tokens)) / 3).round(2).astype(np.float32)
    expected, found = (Tally(classes, tokens, (1, 3)) for _ in range(2))
    expected.add(logits, attribution)
    scores, shares = placed(logits, device), placed(attribution, device)
    accumulators = Accumulators.of(found, device)
    half = rows // 2
    for part in (range(half), range(half, rows)):
        if part:
            device.reduce(scores, shares, rows=part, into=accumulators)
    accumulators.into(found, device, copies=rows)
    for field in ("counts", "votes", "sums", "squares"):
        assert np.array_equal(getattr(found, field), getattr(expected, field))
    assert np.allclose(found.wealth.logarithms, expected.wealth.logarithms, rtol=1e-12, atol=1e-12)


def test_engines_equal_the_cpus(vit: fvit.FaithfulViT, on_gpu: fvit.FaithfulViT, samples: list[Path]) -> None:
    pixels = vit.read(samples[0]).pixels
    noisy = noisy_copies(pixels, range(32), sigma=0.25, seed=0)
    for one, other in zip(vit.pipeline(noisy, sigma=0.25), on_gpu.pipeline(noisy, sigma=0.25), strict=True):
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


def test_a_certificate_equals_the_cpus(
    vit: fvit.FaithfulViT, on_gpu: fvit.FaithfulViT, samples: list[Path]
) -> None:
    for sample in samples[:3]:
        one, other = (each.certify(sample, n=500) for each in (vit, on_gpu))
        assert one.class_.index == other.class_.index
        assert set(one.attention.tokens) == set(other.attention.tokens)
        assert other.class_.radius_l2 == pytest.approx(one.class_.radius_l2, abs=0.01)
        assert other.attention.radius_l2 == pytest.approx(one.attention.radius_l2, abs=0.02)


def test_what_does_not_fit_is_out_of_memory(device: Any) -> None:
    with pytest.raises(OutOfMemory, match="MB left"):
        device.allocate((10**6, 10**7), np.float32)


def test_memory_that_another_thread_drops_is_freed(device: Any) -> None:
    import threading

    def borrow() -> None:
        device.allocate((1 << 28,), np.uint8)

    borrow()
    before = device.free_bytes()
    for _ in range(4):
        thread = threading.Thread(target=borrow)
        thread.start()
        thread.join()
    assert before - device.free_bytes() < 1 << 28


def test_out_of_memory_halves_the_rows_and_changes_no_copy(
    on_gpu: fvit.FaithfulViT, samples: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fvit.runtime.gpu.device import Gpu

    expected = on_gpu.certify(samples[0], n=200)
    allocate = Gpu.allocate

    def scarce(self: Gpu, shape: tuple[int, ...], dtype: Any) -> Any:
        if len(shape) == 4 and shape[0] > 10:
            raise OutOfMemory("full")
        return allocate(self, shape, dtype)

    monkeypatch.setattr(Gpu, "allocate", scarce)
    squeezed = fvit.load(on_gpu.bundle.folder, device="cuda:0")
    found = squeezed.certify(samples[0], n=200)
    assert squeezed._smoother.rows == 8
    assert found.copies_drawn == expected.copies_drawn
    assert abs(found.class_.count - expected.class_.count) <= 1
    assert set(found.attention.tokens) == set(expected.attention.tokens)


def test_no_copy_of_an_image_reaches_the_host(
    on_gpu: fvit.FaithfulViT, samples: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fvit.runtime.gpu.device import Gpu

    down: list[int] = []
    download = Gpu.download

    def noted(self: Gpu, memory: Any) -> Any:
        found = download(self, memory)
        down.append(found.nbytes)
        return found

    monkeypatch.setattr(Gpu, "download", noted)
    transfers = []
    for n in (200, 2000):
        on_gpu.certify(samples[0], n=n)
        transfers.append(list(down))
        down.clear()
    assert transfers[0] == transfers[1]
    assert max(transfers[0]) < on_gpu.read(samples[0]).pixels.nbytes


def test_a_captured_graph_does_its_work_each_time_it_is_launched(device: Any) -> None:
    pixels = np.random.default_rng(1).random((3, 16, 16), np.float32)
    noisy, there = device.allocate((4, *pixels.shape), np.float32), placed(pixels, device)
    launch = device.captured(
        lambda: device.draw(noisy, row=0, pixels=there, copies=range(4), sigma=0.5, seed=3)
    )
    for brightness in (0.0, 0.5):
        device.upload(there, pixels * np.float32(brightness))
        launch()
        drawn = noisy_copies(pixels * np.float32(brightness), range(4), sigma=0.5, seed=3)
        assert np.abs(device.download(noisy) - drawn).max() <= 2e-6


def test_onnxruntimes_tensorrt_provider_equals_the_cpu(
    vit: fvit.FaithfulViT, demo_bundle: Path, samples: list[Path]
) -> None:
    try:
        there = fvit.load(demo_bundle, device="ort-tensorrt:0")
    except FvitError as error:
        pytest.skip(f"needs ONNX Runtime's TensorRT provider ({error})")
    noisy = noisy_copies(vit.read(samples[0]).pixels, range(32), sigma=0.25, seed=0)
    for one, other in zip(vit.pipeline(noisy, sigma=0.25), there.pipeline(noisy, sigma=0.25), strict=True):
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


def test_two_gpus_claim_what_one_claims(on_gpu: fvit.FaithfulViT, samples: list[Path]) -> None:
    import pycuda.driver as driver

    if driver.Device.count() < 2:
        pytest.skip("needs two GPUs")
    one, both = on_gpu, fvit.load(on_gpu.bundle.folder, device="cuda:0,1")
    for sample in samples[:3]:
        expected, found = (each.certify(sample, n=500) for each in (one, both))
        assert found.to_dict()["class"] == expected.to_dict()["class"]
        assert np.array_equal(found.attention.tokens, expected.attention.tokens)
        assert np.array_equal(found.attention.smoothed, expected.attention.smoothed)


def test_a_gpu_that_is_not_there_is_one_clear_line(demo_bundle: Path) -> None:
    with pytest.raises(FvitError, match="counted from 0"):
        fvit.load(demo_bundle, device="cuda:99")
