"""DeviceSmoother against Smoother, with host memory standing in for a GPU's: the kernels' source built
for the host does the counting, and ONNX Runtime is bound to the same addresses."""

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

import fvit
from fvit.engines.base import Memory, open_engine
from fvit.errors import FvitError
from fvit.runtime.device import Accumulators, DeviceSmoother
from fvit.runtime.smoother import Section, Smoother, Tally, noisy_copies
from tests.runtime.conftest import pointer

BATCH = 8


class HostDevice:
    """The device interface over NumPy arrays."""

    def __init__(self, kernels: ctypes.CDLL) -> None:
        self.kernels = kernels
        self.arrays: list[NDArray[np.generic]] = []

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Memory:
        array: NDArray[np.generic] = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8).fill(0xFF)  # nothing may be read before it is written
        self.arrays.append(array)
        return Memory(array.ctypes.data, shape, array.dtype, array)

    def upload(self, memory: Memory, values: NDArray[np.generic]) -> None:
        memory.owner[...] = values

    def download(self, memory: Memory) -> NDArray[np.generic]:
        found: NDArray[np.generic] = memory.owner.copy()
        return found

    def draw(
        self, noisy: Memory, *, row: int, pixels: Memory, copies: range, sigma: float, seed: int
    ) -> None:
        # NumPy's own noise: the kernels' differs in the last bit, which test_kernels.py looks at.
        assert row + len(copies) <= noisy.shape[0]
        drawn = noisy_copies(pixels.owner, copies, sigma=sigma, seed=seed)
        noisy.owner[row : row + len(copies)] = drawn

    def reduce(self, logits: Memory, attribution: Memory, *, rows: range, into: Accumulators) -> None:
        scores, shares = logits.owner[rows.start : rows.stop], attribution.owner[rows.start : rows.stop]
        if not (np.isfinite(scores).all() and np.isfinite(shares).all()):
            into.unfit.owner[0] = 1
        self.kernels.reduce(
            pointer(scores), pointer(shares), len(rows), scores.shape[1], shares.shape[1],
            pointer(into.sizes.owner), len(into.sizes.owner), pointer(into.bets.owner),
            len(into.bets.owner), pointer(into.counts.owner), pointer(into.votes.owner),
            pointer(into.sums.owner), pointer(into.squares.owner), pointer(into.wealth.owner),
        )  # fmt: skip


@pytest.fixture(scope="module")
def device(host_kernels: ctypes.CDLL) -> HostDevice:
    return HostDevice(host_kernels)


def _on_device(vit: fvit.FaithfulViT, device: HostDevice) -> fvit.FaithfulViT:
    engines = [open_engine(graph, device="cpu") for graph in (vit.bundle.denoiser, vit.bundle.classifier)]
    return fvit.FaithfulViT(
        vit.bundle,
        vit.pipeline,
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
    vit: fvit.FaithfulViT, host_kernels: ctypes.CDLL, samples: list[Path]
) -> None:
    class Broken(HostDevice):
        def reduce(self, logits: Memory, attribution: Memory, *, rows: range, into: Accumulators) -> None:
            logits.owner[rows.start, 0] = np.nan
            super().reduce(logits, attribution, rows=rows, into=into)

    with pytest.raises(FvitError, match="not finite"):
        _on_device(vit, Broken(host_kernels)).certify(samples[0], n0=8, n=24)


def test_a_device_that_cannot_be_used_is_one_clear_line(demo_bundle: Path) -> None:
    """Without PyCUDA it names the package, with it and no GPU the driver's reason; never a traceback."""
    with pytest.raises(FvitError, match="pycuda|GPU"):
        fvit.load(demo_bundle, device="cuda:99")
    with pytest.raises(FvitError, match="tensorrt|pycuda|GPU"):
        fvit.load(demo_bundle, device="tensorrt:99")
    with pytest.raises(FvitError, match="use cpu, cuda:0"):
        fvit.load(demo_bundle, device="tpu")


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is not None, reason="there may be a GPU")
def test_auto_takes_the_cpu_and_says_why_not_the_others(demo_bundle: Path) -> None:
    vit = fvit.load(demo_bundle, device="auto")
    assert vit.engine["device"] == "cpu"
    assert [reason.partition(":0: ")[0] for reason in vit.passed_over] == ["tensorrt", "cuda"]
    assert all("pycuda" in reason for reason in vit.passed_over)
