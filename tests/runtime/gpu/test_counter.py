"""DeviceSmoother against Smoother, with host memory standing in for a GPU's: the kernels' source built
for the host does the counting, and ONNX Runtime is bound to the same addresses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

import fvit
from fvit.certificates.tally import Tally
from fvit.engines.base import Memory, open_engine
from fvit.errors import FvitError, OutOfMemory
from fvit.runtime.gpu.counter import Accumulators, DeviceSmoother
from fvit.runtime.host import Section, Smoother, noisy_copies
from tests.runtime.gpu.conftest import HostGpu

BATCH = 8


class HostDevice(HostGpu):
    """With NumPy's own noise: the kernels' differs in the last bit, which test_kernels.py looks at."""

    def __init__(self, gpu: HostGpu) -> None:
        super().__init__(gpu._library)

    def draw(
        self, noisy: Memory, *, row: int, pixels: Memory, copies: range, sigma: float, seed: int
    ) -> None:
        assert row + len(copies) <= noisy.shape[0]
        drawn = noisy_copies(pixels.owner, copies, sigma=sigma, seed=seed)
        noisy.owner[row : row + len(copies)] = drawn


@pytest.fixture(scope="module")
def device(host_gpu: HostGpu) -> HostDevice:
    return HostDevice(host_gpu)


def _on_device(
    vit: fvit.FaithfulViT, device: HostDevice, *, capturable: tuple[bool, bool] = (False, False)
) -> fvit.FaithfulViT:
    engines = [open_engine(graph, device="cpu") for graph in (vit.bundle.denoiser, vit.bundle.classifier)]
    for engine, can in zip(engines, capturable, strict=True):
        engine.capturable = can
    return fvit.FaithfulViT(
        vit.bundle,
        vit.pipeline,
        device="cpu",
        batch=BATCH,
        smoother=lambda batch: DeviceSmoother(device, *engines, schedule=vit.pipeline.schedule, batch=batch),
    )


def test_certificates_on_a_device_equal_those_on_the_host(
    vit: fvit.FaithfulViT, device: HostDevice, samples: list[Path]
) -> None:
    """Several images that share batches; counts, tokens and radii to the last digit."""
    host, there = fvit.load(vit.bundle.folder, batch=BATCH), _on_device(vit, device)
    for aggregate in ("vote", "mean"):
        terms = {"n0": 12, "n": 110, "alpha": 0.05, "k": (3, 10), "aggregate": aggregate, "seed": 4}
        for sample in samples[:2]:
            one, other = (each.certify(sample, **terms).to_dict() for each in (host, there))  # type: ignore[arg-type]
            for record in (one, other):
                del record["seconds"]
            assert one == other


def test_sections_that_share_batches_are_counted_apart_and_padding_is_not(
    vit: fvit.FaithfulViT, device: HostDevice, samples: list[Path]
) -> None:
    pictures = [vit.read(sample).pixels for sample in samples[:3]]
    smoothers = (
        Smoother(vit.pipeline, batch=BATCH),
        _on_device(vit, device)._smoother,
    )
    results = []
    for smoother in smoothers:
        sections = [
            Section(pixels, copies, Tally(10, 64, (10,)))
            for pixels, copies in zip(pictures, (range(3), range(5, 18), range(2, 4)), strict=True)
        ]
        done = list(smoother.run(sections, sigma=0.25, seed=9))
        assert done == sections
        results.append(sections)
    for one, other in zip(*results, strict=True):
        assert one.tally.copies == other.tally.copies == len(one.copies)
        for field in ("counts", "votes", "sums", "squares"):
            assert np.array_equal(getattr(one.tally, field), getattr(other.tally, field))


def test_a_decision_continues_its_tally_on_the_device(
    vit: fvit.FaithfulViT, device: HostDevice, samples: list[Path]
) -> None:
    host, there = fvit.load(vit.bundle.folder, batch=BATCH), _on_device(vit, device)
    one, other = (each.certify(samples[0], n0=12, n=200, radius=0.1, seed=3) for each in (host, there))
    assert one.copies_drawn == other.copies_drawn
    assert one.decision == other.decision
    assert np.array_equal(one.attention.tokens, other.attention.tokens)


def test_predicting_needs_no_votes(vit: fvit.FaithfulViT, device: HostDevice, samples: list[Path]) -> None:
    one = fvit.load(vit.bundle.folder, batch=BATCH).predict(samples[0], n=BATCH)
    other = _on_device(vit, device).predict(samples[0], n=BATCH)
    assert np.array_equal(one.counts, other.counts)
    assert np.array_equal(one.attention, other.attention)


def test_values_that_are_not_finite_are_refused(
    vit: fvit.FaithfulViT, host_gpu: HostGpu, samples: list[Path]
) -> None:
    class Broken(HostDevice):
        def reduce(self, logits: Memory, attribution: Memory, *, rows: range, into: Accumulators) -> None:
            logits.owner[rows.start, 0] = np.nan
            super().reduce(logits, attribution, rows=rows, into=into)

    with pytest.raises(FvitError, match="not finite"):
        _on_device(vit, Broken(host_gpu)).certify(samples[0], n0=8, n=24)


class Recorded(HostDevice):
    """Notes every transfer between host and device, and what is captured."""

    def __init__(self, gpu: HostGpu) -> None:
        super().__init__(gpu)
        self.transfers: list[tuple[str, int]] = []
        self.captures = 0

    def upload(self, memory: Memory, values: NDArray[np.generic]) -> None:
        self.transfers.append(("up", memory.owner.nbytes))
        super().upload(memory, values)

    def download(self, memory: Memory) -> NDArray[np.generic]:
        self.transfers.append(("down", memory.owner.nbytes))
        return super().download(memory)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        return work


def test_what_crosses_to_the_host_does_not_grow_with_the_copies(
    vit: fvit.FaithfulViT, host_gpu: HostGpu, samples: list[Path]
) -> None:
    """One image up, the counts down; no copy of the image ever."""
    seen = []
    for n in (24, 240):
        device = Recorded(host_gpu)
        _on_device(vit, device).certify(samples[0], n0=8, n=n, alpha=0.1)
        seen.append(device.transfers)
    assert seen[0] == seen[1]
    image = vit.read(samples[0]).pixels.nbytes
    assert [size for way, size in seen[0] if way == "up"].count(image) == 1
    assert all(size < image for way, size in seen[0] if way == "down")


def test_networks_are_captured_once_and_only_where_every_engine_allows_it(
    vit: fvit.FaithfulViT, host_gpu: HostGpu, samples: list[Path]
) -> None:
    for capturable, captures in ((True, 1), (False, 0)):
        device = Recorded(host_gpu)
        there = _on_device(vit, device, capturable=(True, capturable))
        for _ in range(2):
            there.certify(samples[0], n0=8, n=40, alpha=0.1)
        assert device.captures == captures


class Small(HostDevice):
    """Has memory for so many rows of noisy copies, and for fewer once the networks run."""

    def __init__(self, gpu: HostGpu, *, rows: int, rows_that_run: int) -> None:
        super().__init__(gpu)
        self.most, self.rows_that_run, self.placed = rows, rows_that_run, 0

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Memory:
        if len(shape) == 4 and shape[0] > self.most:
            raise OutOfMemory("the device is full")
        if len(shape) == 4:
            self.placed = shape[0]
        return super().allocate(shape, dtype)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        calls = 0

        def limited() -> None:
            nonlocal calls
            calls += 1
            if self.placed > self.rows_that_run and calls > 1:
                raise OutOfMemory("the device is full")
            work()

        return limited


@pytest.mark.parametrize(("rows", "rows_that_run"), [(8, 8), (4, 4), (8, 4), (4, 2), (3, 1)])
def test_out_of_memory_halves_the_rows_and_changes_no_copy(
    vit: fvit.FaithfulViT, host_gpu: HostGpu, samples: list[Path], rows: int, rows_that_run: int
) -> None:
    """Where the copies are drawn, and again in the middle of a run."""
    host = fvit.load(vit.bundle.folder, batch=BATCH)
    there = _on_device(vit, Small(host_gpu, rows=rows, rows_that_run=rows_that_run), capturable=(True, True))
    one, other = (each.certify(samples[0], n0=12, n=61, alpha=0.05) for each in (host, there))
    assert there._smoother.rows <= min(rows, rows_that_run)
    assert one.copies_drawn == other.copies_drawn
    assert one.class_.count == other.class_.count
    assert np.array_equal(one.attention.tokens, other.attention.tokens)
    assert np.allclose(one.attention.smoothed, other.attention.smoothed)


def test_a_device_without_room_for_one_row_says_so(vit: fvit.FaithfulViT, host_gpu: HostGpu) -> None:
    with pytest.raises(OutOfMemory, match="no memory for 1 copies"):
        _on_device(vit, Small(host_gpu, rows=0, rows_that_run=0))
