"""DeviceCounter, on a stand-in for a GPU that runs the kernels' own source, against one copy after another:
equal to the last digit."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fvit
from fvit.certificates.tally import TOTAL, Tally
from fvit.engines.onnxruntime import ROWS as CPU_ROWS
from fvit.engines.opening import open_engine
from fvit.errors import DeviceLost, FvitError, OutOfMemory
from fvit.runtime.gpu.counter import DeviceCounter
from fvit.runtime.noise import noisy_copies
from fvit.runtime.queue import Batch, Stretch
from tests.runtime.gpu.conftest import HostGpu
from tests.runtime.gpu.toys import (
    SCHEDULE,
    SIDE,
    Classifier,
    Denoiser,
    OnStream,
    counted,
    on_host,
    same,
    stretch,
)

ROWS = 8


def _counter(gpu: HostGpu, *, rows: int = ROWS, fixed: tuple[int | None, int | None] = (None, None)) -> Any:
    engines = Denoiser(gpu, fixed=fixed[0]), Classifier(gpu, fixed=fixed[1])
    return DeviceCounter(gpu, *engines, schedule=SCHEDULE, rows=rows)


def _right(counter: DeviceCounter, batch: Batch, tallies: Sequence[Any]) -> bool:
    expected = [counted(*part, *counter.engines) for part in batch]
    return all(same(*pair) for pair in zip(tallies, expected, strict=True))


def _mixed() -> Batch:
    """Of everything that parts of one batch may differ in."""
    one = stretch(1, range(0, 50), sizes=(1, 4, 20))
    return [
        (one, range(3)),
        (stretch(2, sigma=1.0, sizes=()), range(5, 6)),
        (stretch(1, sigma=0.25, key=2**128 - 1, betting=True), range(2**40, 2**40 + 2)),
        (one, range(17, 18)),
        (stretch(3, sigma=0.12, sizes=(2, 2), betting=True), range(9, 10)),
    ]


def _batch_of(rows: int, seed: int = 1) -> Batch:
    return [(stretch(seed, range(rows)), range(rows))]


def test_parts_that_differ_in_everything_are_counted_apart(gpu: HostGpu) -> None:
    counter = _counter(gpu)
    batch = _mixed()
    assert sum(len(copies) for _, copies in batch) == ROWS
    assert _right(counter, batch, counter.begin(batch)())
    assert all(stretch.tally.copies == 0 for stretch, _ in batch)


def test_any_batches_are_counted_rightly(gpu: HostGpu) -> None:
    """300 batches at random, of 1 to 8 rows; with one begun before the one before it is finished."""
    rng = np.random.default_rng(0)
    counter = _counter(gpu)
    begun: list[tuple[Batch, Callable[[], list[Any]]]] = []

    def finish() -> None:
        batch, finish = begun.pop(0)
        assert _right(counter, batch, finish())

    for _ in range(300):
        batch: Batch = []
        room = ROWS
        while room and (not batch or rng.random() < 0.7):
            length, first = int(rng.integers(1, room + 1)), int(rng.integers(2**34))
            sizes = tuple(map(int, rng.integers(1, 21, rng.integers(0, 4))))
            of = stretch(
                int(rng.integers(4)),
                sigma=float(rng.choice([0.1, 0.25, 0.7])),
                sizes=sizes,
                betting=rng.random() < 0.3,
            )
            batch.append((of, range(first, first + length)))
            room -= length
        begun.append((batch, counter.begin(batch)))
        if len(begun) > counter.ahead:
            finish()
    while begun:
        finish()


def test_rows_beyond_the_batch_are_further_copies_and_nobodys(gpu: HostGpu) -> None:
    counter = _counter(gpu)
    of = stretch(1)
    (tally,) = counter.begin([(of, range(4, 7))])()
    assert isinstance(tally, Tally)
    assert tally.copies == tally.counts.sum() == 3
    drawn = on_host(counter.memory["noisy"])
    further = noisy_copies(of.picture.pixels, range(4, 4 + ROWS), sigma=of.sigma, key=of.key)
    assert np.array_equal(drawn, further)


def test_work_for_a_batch_does_not_grow_with_its_company(gpu: HostGpu) -> None:
    """One draw and two launches to reduce, three where somebody bets; one transfer each way."""
    counter = _counter(gpu)
    once = ["draw_copies", "find_classes", "count_tokens"]
    alike = [(stretch(i), range(1)) for i in range(ROWS)]
    for batch, launches in ((_batch_of(1), once), (alike, once), (_mixed(), [*once, "add_wealth"])):
        gpu.launches.clear()
        gpu.transfers.clear()
        assert _right(counter, batch, counter.begin(batch)())
        assert gpu.launches == launches
        assert [way for way, _ in gpu.transfers] == ["up", "down"]


def test_what_crosses_to_the_device_is_each_picture_once_and_to_the_host_no_copy(gpu: HostGpu) -> None:
    counter = _counter(gpu, rows=64)
    image = 3 * SIDE * SIDE
    one, twin = stretch(1), stretch(2)
    up, down = {}, {}
    for name, batch in {
        "few": [(one, range(4))],
        "many": [(one, range(60))],
        "halves": [(one, range(30)), (one, range(30, 60))],
        "two": [(one, range(30)), (twin, range(30, 60))],
    }.items():
        gpu.transfers.clear()
        counter.begin(batch)()
        up[name], down[name] = dict(gpu.transfers)["up"], dict(gpu.transfers)["down"]
    assert up["few"] == up["many"]
    assert 0 <= up["two"] - up["halves"] - image < 16
    assert down["many"] < image * 4
    assert down["many"] - down["few"] == 56 * (4 + 4)  # a class and a mark of what is unfit each


def test_networks_are_captured_once_and_only_where_every_engine_allows_it(gpu: HostGpu) -> None:
    for can in (True, False):
        gpu.captures = 0
        engines = Denoiser(gpu), Classifier(gpu)
        engines[0].capturable, engines[1].capturable = True, can
        counter = DeviceCounter(gpu, *engines, schedule=SCHEDULE, rows=ROWS)
        for _ in range(3):
            assert _right(counter, _mixed(), counter.begin(_mixed())())
        assert gpu.captures == can


def test_rows_are_made_up_to_what_the_graphs_take(gpu: HostGpu) -> None:
    counter = _counter(gpu, rows=5, fixed=(3, 2))
    assert (counter.rows, counter.grain) == (6, 6)


@pytest.mark.parametrize("rows", [0, -1])
def test_a_batch_of_no_copies_is_refused(gpu: HostGpu, rows: int) -> None:
    with pytest.raises(FvitError, match="at least one copy"):
        _counter(gpu, rows=rows)


@pytest.mark.parametrize(("fits", "rows"), [(7, 4), (4, 4), (3, 2), (1, 1)])
def test_where_memory_is_small_rows_are_halved_and_batches_counted_all_the_same(
    gpu: HostGpu, fits: int, rows: int
) -> None:
    gpu.most_rows = fits
    counter = _counter(gpu)
    assert counter.rows == counter.grain == rows
    assert _right(counter, _mixed(), counter.begin(_mixed())())


@pytest.mark.parametrize("runs", [7, 4, 3, 1])
def test_where_networks_run_out_of_memory_rows_are_halved_in_the_middle(gpu: HostGpu, runs: int) -> None:
    """With a batch under way, whose results stay right."""
    counter = _counter(gpu)
    before = counter.begin(_batch_of(5))

    def full(rows: int) -> None:
        if rows > runs:
            raise OutOfMemory("the device is full")

    counter.engines[1].launching = full
    after = counter.begin(_mixed())
    assert counter.rows <= runs
    assert _right(counter, _batch_of(5), before())
    assert _right(counter, _mixed(), after())
    assert _right(counter, _batch_of(1), counter.begin(_batch_of(1))())


def test_a_device_without_room_for_the_fewest_rows_says_so(gpu: HostGpu) -> None:
    gpu.most_rows = 5
    with pytest.raises(OutOfMemory, match="no memory for 6 copies .* smaller --batch"):
        _counter(gpu, rows=20, fixed=(3, 2))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("logits", np.nan, "not finite"), ("logits", -np.inf, "not finite"),
        ("attribution", np.nan, "not finite"), ("attribution", np.inf, "not finite"),
        ("attribution", -1e-6, "no distribution"),
        ("attribution", np.nextafter(np.float32(TOTAL), 2), "no distribution"),
    ],
)  # fmt: skip
def test_values_that_are_no_result_refuse_their_own_part(
    gpu: HostGpu, name: str, value: float, said: str
) -> None:
    """And no other's; those that fill up the rows are nobody's."""
    counter = _counter(gpu)

    def spoil(row: int) -> Callable[[dict[str, NDArray[Any]]], None]:
        return lambda arrays: arrays[name].__setitem__((row, 1), value)

    counter.engines[1].done = spoil(4)
    bad, good = stretch(1), stretch(2)
    refused, tally = counter.begin([(bad, range(5)), (good, range(1))])()
    assert isinstance(refused, FvitError)
    assert said in str(refused)
    assert isinstance(tally, Tally)
    assert tally.copies == 1
    counter.engines[1].done = spoil(5)
    assert _right(counter, _batch_of(5), counter.begin(_batch_of(5))())


def test_an_attribution_without_any_value_is_refused(gpu: HostGpu) -> None:
    counter = _counter(gpu)
    counter.engines[1].done = lambda arrays: arrays["attribution"].__setitem__(2, 0)
    assert _refused(counter, _batch_of(3))
    assert not _refused(counter, _batch_of(2))


def test_betting_refuses_attributions_whose_sum_is_too_large(gpu: HostGpu) -> None:
    counter = _counter(gpu)
    counter.engines[1].done = lambda arrays: np.multiply(
        arrays["attribution"], 1.01, out=arrays["attribution"]
    )
    assert not _refused(counter, [(stretch(1), range(3))])
    assert _refused(counter, [(stretch(1, betting=True), range(3))])


def _refused(counter: DeviceCounter, batch: Batch) -> bool:
    """Whether the batch's one part is no distribution."""
    (found,) = counter.begin(batch)()
    return isinstance(found, FvitError) and "no distribution" in str(found)


def _failing(*_: Any) -> None:
    raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED\nand much more")


@pytest.mark.parametrize("when", ["launching", "done"])
def test_a_failure_is_one_line_and_the_device_goes_on(gpu: HostGpu, when: str) -> None:
    counter = _counter(gpu)
    setattr(counter.engines[1], when, _failing)
    with pytest.raises(FvitError, match="host could not count these copies: CUDNN_STATUS") as caught:
        counter.begin(_mixed())()
    assert not isinstance(caught.value, DeviceLost)
    assert "\n" not in str(caught.value)
    setattr(counter.engines[1], when, lambda said: None)
    gpu.wait()
    assert _right(counter, _mixed(), counter.begin(_mixed())())


@pytest.mark.parametrize("when", ["begin", "finish"])
def test_a_device_that_cannot_be_waited_for_is_lost_and_can_be_closed(gpu: HostGpu, when: str) -> None:
    counter = _counter(gpu)
    finish = counter.begin(_mixed())
    gpu.lost = True
    counter.engines[0].launching = _failing
    with pytest.raises(DeviceLost, match="host has failed for good"):
        finish() if when == "finish" else counter.begin(_mixed())
    counter.close()


def test_nothing_is_left_on_the_device_after_close(gpu: HostGpu) -> None:
    for cycle in range(200):
        counter = _counter(gpu)
        finish = counter.begin(_mixed())
        if cycle % 2:  # what is under way may be dropped
            finish()
        counter.close()
        del finish
        assert gpu.allocations == 0


def test_room_does_not_grow_with_the_batches(gpu: HostGpu) -> None:
    counter = _counter(gpu)
    held = set()
    for _ in range(20):
        under_way = [counter.begin(_mixed()), counter.begin(_mixed())]
        for finish in under_way:
            finish()
        held.add(gpu.allocations)
    assert len(held) == 1


def test_the_embedded_model_counts_as_on_the_host(
    vit: fvit.FaithfulViT, gpu: HostGpu, samples: list[Path]
) -> None:
    """ONNX Runtime bound to the device's memory; as many rows at once as it computes on a core."""
    graphs = (vit.bundle.denoiser, vit.bundle.classifier)
    engines = [OnStream(gpu, open_engine(graph, device="cpu", threads=1)) for graph in graphs]
    counter = DeviceCounter(gpu, *engines, schedule=vit.pipeline.schedule, rows=CPU_ROWS)
    batches: list[Batch] = []
    for i, sigma in ((0, 0.25), (1, 0.4)):
        tally = Tally(vit.pipeline.classes, vit.pipeline.tokens, (3, 10), betting=True)
        of = Stretch(vit.read(samples[i]), range(4), sigma, 2**100 + i, tally)
        batches += [[(of, range(2))], [(of, range(2, 4))]]
    for batch in batches:
        (of, copies), expected = batch[0], batch[0][0].tally.empty()
        noisy = noisy_copies(of.picture.pixels, copies, sigma=of.sigma, key=of.key)
        expected.add(*vit.pipeline(noisy, sigma=np.full(2, of.sigma, np.float32)))
        (found,) = counter.begin(batch)()
        assert isinstance(found, Tally)
        assert same(found, expected)
