"""What needs a GPU: the kernels, memory, and ONNX Runtime's CUDA provider, against the CPU."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fvit
from fvit.errors import FvitError, OutOfMemory
from fvit.runtime.gpu.device import Gpu
from fvit.runtime.noise import noisy_copies
from fvit.runtime.queue import Batch
from tests.gpu.conftest import moved_copies
from tests.runtime.gpu.toys import SIDE, drawn, fetched, reductions, same, stretch


@pytest.fixture(scope="module")
def device() -> Gpu:
    return Gpu(0)


@pytest.fixture(scope="module")
def on_gpu(demo_bundle: Path) -> Iterator[fvit.FaithfulViT]:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    with fvit.load(demo_bundle, device="cuda:0") as loaded:
        yield loaded


def test_copies_equal_the_hosts_to_the_last_digit(device: Gpu) -> None:
    """Several pictures, σ, keys and copies far on in one launch."""
    batch: Batch = [
        (stretch(1, key=2**128 - 1), range(2**32 - 3, 2**32 + 3000)),
        (stretch(2, sigma=0.12), range(2**40, 2**40 + 1)),
        (stretch(3, sigma=1.0, key=2**64), range(7)),
        (stretch(1, sigma=0.5), range(5)),
    ]
    rows = sum(len(copies) for _, copies in batch)
    found = drawn(device, batch, rows=rows)
    expected = [noisy_copies(of.picture.pixels, part, sigma=of.sigma, key=of.key) for of, part in batch]
    assert np.array_equal(found["noisy"], np.concatenate(expected))
    sigma = np.concatenate([np.full(len(part), of.sigma, np.float32) for of, part in batch])
    assert np.array_equal(found["sigma"], sigma)


@pytest.mark.parametrize(("rows", "classes", "tokens"), [(1, 2, 4), (37, 10, 64), (256, 1000, 196)])
def test_reductions_equal_the_tallys(device: Gpu, rows: int, classes: int, tokens: int) -> None:
    assert all(same(*pair) for pair in reductions(device, rows=rows, classes=classes, tokens=tokens))


def test_a_captured_graph_does_its_work_each_time_it_is_launched(device: Gpu) -> None:
    target = device.allocate((SIDE,), np.float32)
    work = device.captured(lambda: device.clear(target, 4 * SIDE))
    for value in (1.0, 2.0):
        device.upload(np.full(SIDE, value, np.float32), target)
        assert (fetched(device, target) == value).all()
        work()
        assert (fetched(device, target) == 0).all()


def test_events_tell_what_the_device_took(device: Gpu) -> None:
    memory = device.allocate((1 << 28,), np.uint8)
    before = device.event()
    device.clear(memory, 1 << 28)
    after = device.event()
    after.wait()
    assert 0 < before.milliseconds_to(after) < 1000


def test_engines_equal_the_cpus(vit: fvit.FaithfulViT, on_gpu: fvit.FaithfulViT, samples: list[Path]) -> None:
    pixels = vit.read(samples[0]).pixels
    noisy = noisy_copies(pixels, range(32), sigma=0.25, key=0)
    sigma = np.linspace(0.2, 0.3, 32, dtype=np.float32)
    for one, other in zip(vit.pipeline(noisy, sigma=sigma), on_gpu.pipeline(noisy, sigma=sigma), strict=True):
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


def test_a_certificate_equals_the_cpus(
    vit: fvit.FaithfulViT, on_gpu: fvit.FaithfulViT, samples: list[Path]
) -> None:
    """The same copies counted: only a tie within rounding may move one."""
    for sample in samples[:3]:
        one, other = (each.certify(sample, n=500, seed=0).to_dict() for each in (vit, on_gpu))
        assert max(moved_copies(one, other)) <= 2
        assert one["class"]["index"] == other["class"]["index"]
        assert set(one["attention"]["tokens"]) == set(other["attention"]["tokens"])
        assert other["class"]["radius_l2"] == pytest.approx(one["class"]["radius_l2"], abs=0.01)
        assert other["attention"]["radius_l2"] == pytest.approx(one["attention"]["radius_l2"], abs=0.02)


def test_what_does_not_fit_is_out_of_memory(device: Gpu) -> None:
    with pytest.raises(OutOfMemory, match="MB left"):
        device.allocate((10**6, 10**7), np.float32)


def test_memory_that_another_thread_drops_is_freed(device: Gpu) -> None:
    def borrow() -> None:
        device.allocate((1 << 28,), np.uint8)

    borrow()
    before = device.free_bytes()
    for _ in range(4):
        thread = threading.Thread(target=borrow)
        thread.start()
        thread.join()
    assert before - device.free_bytes() < 1 << 28


def test_loading_and_closing_again_and_again_holds_no_memory(
    device: Gpu, on_gpu: fvit.FaithfulViT, samples: list[Path]
) -> None:
    free = []
    for _ in range(12):
        with fvit.load(on_gpu.bundle.folder, device="cuda:0") as loaded:
            loaded.predict(samples[0], n=16)
        del loaded
        free.append(device.free_bytes())
    assert free[1] - free[-1] < 64 << 20


def test_out_of_memory_halves_the_rows_and_changes_no_copy(
    on_gpu: fvit.FaithfulViT, samples: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = on_gpu.certify(samples[0], n=200, seed=0).to_dict()
    allocate = Gpu.allocate

    def scarce(self: Gpu, shape: tuple[int, ...], dtype: Any) -> Any:
        if len(shape) == 4 and shape[0] > 10:
            raise OutOfMemory("full")
        return allocate(self, shape, dtype)

    monkeypatch.setattr(Gpu, "allocate", scarce)
    with fvit.load(on_gpu.bundle.folder, device="cuda:0") as squeezed:
        found = squeezed.certify(samples[0], n=200, seed=0).to_dict()
        assert squeezed.rows == 8
    assert found["copies"] == expected["copies"]
    moved = (
        abs(found["class"]["counts"].get(index, 0) - count)
        for index, count in expected["class"]["counts"].items()
    )
    assert max(moved) <= 1
    assert set(found["attention"]["tokens"]) == set(expected["attention"]["tokens"])


def test_no_copy_of_an_image_reaches_the_host(
    on_gpu: fvit.FaithfulViT, samples: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    down: list[int] = []
    download = Gpu.download

    def noted(self: Gpu, memory: Any, values: Any) -> None:
        down.append(values.nbytes)
        download(self, memory, values)

    monkeypatch.setattr(Gpu, "download", noted)
    on_gpu.certify(samples[0], n=2000)
    assert down
    assert max(down) < on_gpu.read(samples[0]).pixels.size


def test_callers_share_batches_and_count_what_they_count_alone(
    on_gpu: fvit.FaithfulViT, samples: list[Path]
) -> None:
    asked = [(sample, sigma) for sample in samples[:2] for sigma in (0.2, 0.25)]
    alone = [on_gpu.certify(sample, sigma=sigma, n=150, seed=0) for sample, sigma in asked]
    found: dict[int, fvit.Certificate] = {}

    def ask(i: int) -> None:
        found[i] = on_gpu.certify(asked[i][0], sigma=asked[i][1], n=150, seed=0)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, one in enumerate(alone):
        assert found[i].to_dict()["class"] == one.to_dict()["class"]
        assert found[i].to_dict()["attention"]["votes"] == one.to_dict()["attention"]["votes"]


def test_onnxruntimes_tensorrt_provider_equals_the_cpu(
    vit: fvit.FaithfulViT, demo_bundle: Path, samples: list[Path]
) -> None:
    try:
        there = fvit.load(demo_bundle, device="ort-tensorrt:0")
    except FvitError as error:
        pytest.skip(f"needs ONNX Runtime's TensorRT provider ({error})")
    noisy = noisy_copies(vit.read(samples[0]).pixels, range(32), sigma=0.25, key=0)
    sigma = np.full(32, 0.25, np.float32)
    with there:
        for one, other in zip(
            vit.pipeline(noisy, sigma=sigma), there.pipeline(noisy, sigma=sigma), strict=True
        ):
            assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


def test_two_gpus_claim_what_one_claims(on_gpu: fvit.FaithfulViT, samples: list[Path]) -> None:
    import pycuda.driver as driver

    if driver.Device.count() < 2:
        pytest.skip("needs two GPUs")
    with fvit.load(on_gpu.bundle.folder, device="cuda:0,1") as both:
        for sample in samples[:3]:
            expected, found = (each.certify(sample, n=500, seed=0).to_dict() for each in (on_gpu, both))
            assert found["class"] == expected["class"]
            assert found["attention"] == expected["attention"]


def test_a_gpu_that_is_not_there_is_one_clear_line(demo_bundle: Path) -> None:
    with pytest.raises(FvitError, match="counted from 0"):
        fvit.load(demo_bundle, device="cuda:99")
