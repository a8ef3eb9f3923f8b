"""The queue: whatever the callers, the schedule and the failures, each stretch gets its own copies."""

import gc
import os
import threading
from collections import Counter as Multiset
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvit.certificates.tally import Tally
from fvit.errors import DeviceLost, FvitError
from fvit.runtime.images import Picture, read_image
from fvit.runtime.queue import CREDIT, NEW, OLDEST, TURN, Account, Batch, Counted, Queue, Stretch

CLASSES, TOKENS = 3, 5
LIMIT = 60
"""Seconds after which a test says that the queue hangs."""


def picture(number: int, *, side: int = 2) -> Picture:
    return read_image(np.full((side, side, 3), number, np.uint8), size=(side, side))


def stretch(number: int, copies: range, *, sigma: float = 0.25, key: int = 0, **more: object) -> Stretch:
    return Stretch(
        picture(number), copies, sigma=sigma, key=key, tally=Tally(CLASSES, TOKENS, (1, 2)),
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


def count(one: Stretch, copies: range, tally: Tally) -> Tally:
    """What a pipeline would give, from the picture, the copy, σ and the key alone."""
    for copy in copies:
        words = (int(one.picture.pixels[0, 0, 0]), one.picture.pixels.size, copy, round(100 * one.sigma))
        rng = np.random.default_rng((*words, one.key))
        shares = rng.random((1, TOKENS), np.float32)
        tally.add(rng.random((1, CLASSES), np.float32), shares / shares.sum())
    return tally


def alone(one: Stretch) -> Tally:
    return count(one, one.copies, one.tally.empty())


def same(one: Tally, other: Tally) -> bool:
    return one.copies == other.copies and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("counts", "votes", "sums")
    )


@dataclass
class Device:
    """A device that does a batch when it is allowed to, and fails when it is told to."""

    rows: int = 4
    grain: int = 1
    ahead: int = 0
    free: bool = True
    begun: list[Batch] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    allowed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    seen: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    closed: bool = False

    def begin(self, batch: Batch) -> Callable[[], list[Tally]]:
        assert 0 < sum(len(copies) for _, copies in batch) <= self.rows
        self.begun.append(batch)
        self.seen.release()

        def finish() -> list[Tally]:
            if not self.free:
                assert self.allowed.acquire(timeout=LIMIT)
            if self.faults:
                raise self.faults.pop()
            return [count(one, copies, one.tally.empty()) for one, copies in batch]

        return finish

    def close(self) -> None:
        self.closed = True

    def wait_begun(self) -> Batch:
        """The next batch that is begun."""
        assert self.seen.acquire(timeout=LIMIT)
        return self.begun[-1]

    def step(self) -> None:
        self.allowed.release()

    def run_free(self) -> None:
        self.free = True
        for _ in range(1000):
            self.allowed.release()


def rows_of(batch: Batch) -> list[tuple[Stretch, int]]:
    return [(one, copy) for one, copies in batch for copy in copies]


def result(counted: Counted) -> Tally:
    return counted.result(timeout=LIMIT)


# --- whose rows come when ------------------------------------------------------------------------------


def test_every_batch_is_full_while_rows_wait() -> None:
    device = Device(rows=8, free=False)
    with_queue = Queue([device])
    first = with_queue.submit(stretch(0, range(1)))
    device.wait_begun()
    others = [with_queue.submit(stretch(i, range(i, i + 5))) for i in range(1, 9)]
    device.run_free()
    assert all(same(result(each), alone(each.stretch)) for each in (first, *others))
    assert [len(rows_of(batch)) for batch in device.begun] == [1, 8, 8, 8, 8, 8]
    with_queue.close()


def test_a_short_request_overtakes_a_long_one() -> None:
    device = Device(rows=8, free=False)
    queue = Queue([device])
    long = queue.submit(stretch(0, range(10_000)))
    for _ in range(20):
        device.wait_begun()
        device.step()
    short = queue.submit(stretch(1, range(16)))
    taken = 0
    while taken < 5:
        if short.done():
            break
        device.wait_begun()
        device.step()
        taken += 1
    result(short)
    assert not long.done()
    long.cancel()
    device.run_free()
    queue.close()


def test_the_oldest_stretch_has_its_share_of_every_batch() -> None:
    """However many short ones keep coming."""
    device = Device(rows=8, free=False)
    queue = Queue([device])
    long = queue.submit(stretch(0, range(200)))
    for number in range(1, 60):
        queue.submit(stretch(number, range(8)))
        batch = device.wait_begun()
        share = sum(len(copies) for one, copies in batch if one is long.stretch)
        assert share >= 8 // OLDEST
        device.step()
    device.run_free()
    queue.close()


def test_stretches_of_one_account_are_served_by_age() -> None:
    device = Device(rows=4, free=False)
    queue = Queue([device])
    account = Account()
    one, other = (queue.submit(stretch(i, range(100), account=account)) for i in range(2))
    device.run_free()
    result(one)
    result(other)
    served = [number for batch in device.begun for number, _ in rows_of(batch)]
    assert served == [one.stretch] * 100 + [other.stretch] * 100
    queue.close()


def test_a_device_of_one_row_serves_short_requests_too() -> None:
    device = Device(rows=1, free=False)
    queue = Queue([device])
    queue.submit(stretch(0, range(10_000)))
    for _ in range(100):
        device.wait_begun()
        device.step()
    short = queue.submit(stretch(1, range(16)))
    for _ in range(24):
        device.wait_begun()
        device.step()
    result(short)
    queue.submit(stretch(2, range(1))).cancel()
    closing = threading.Thread(target=queue.close, kwargs={"cancel": True})
    closing.start()
    device.run_free()
    closing.join(LIMIT)


def test_newcomers_do_not_undercut_each_other() -> None:
    """Served in the order in which they come, however many come while others are open."""
    device = Device(rows=4, free=False)
    queue = Queue([device])
    old = queue.submit(stretch(0, range(100_000)))
    for _ in range(600):
        device.wait_begun()
        device.step()
    device.wait_begun()
    news = [queue.submit(stretch(number, range(16))) for number in range(1, 7)]
    device.run_free()
    for new in news:
        result(new)
    order = [one.picture for batch in device.begun for one, _ in batch if one is not old.stretch]
    assert list(dict.fromkeys(order)) == [new.stretch.picture for new in news]
    old.cancel()
    queue.close()


def test_short_requests_without_a_pause_leave_the_rest_to_long_ones() -> None:
    """And the first after a pause is answered at once."""
    device = Device(rows=8)
    queue = Queue([device])
    long = [queue.submit(stretch(number, range(100_000))) for number in range(4)]
    shorts: list[Counted] = []
    enough = threading.Event()

    def ask_again(before: object = None) -> None:
        if len(shorts) == 100:
            enough.set()
            return
        shorts.append(queue.submit(stretch(100 + len(shorts), range(16))))
        shorts[-1].add_done_callback(ask_again)

    while queue.statistics.batches < TURN * NEW:
        device.wait_begun()
    ask_again()
    assert enough.wait(LIMIT)
    for each in long:
        each.cancel()
    queue.close()

    pictures = [each.stretch.picture for each in shorts]
    having = [i for i, batch in enumerate(device.begun) if any(one.picture in pictures for one, _ in batch)]
    batches = having[-1] - having[0]
    assert 16 * len(shorts) - TURN - 16 <= 8 * batches / NEW < 16 * len(shorts)
    first = [i for i in having if any(one.picture is pictures[0] for one, _ in device.begun[i])]
    assert len(first) == first[-1] - first[0] + 1 == -(-16 // (8 - 8 // OLDEST))


def test_a_newcomer_comes_first_and_then_in_turn_with_who_had_much_before() -> None:
    device = Device(rows=64, free=False)
    queue = Queue([device])
    old = queue.submit(stretch(0, range(100_000)))
    for _ in range(100):
        device.wait_begun()
        device.step()
    new = queue.submit(stretch(1, range(100_000)))
    device.wait_begun()
    device.step()
    shares = []
    for _ in range(60):
        batch = device.wait_begun()
        shares.append(sum(len(copies) for one, copies in batch if one is new.stretch))
        device.step()
    first = -(-CREDIT // (64 - 64 // OLDEST))
    assert shares[:first] == [64 - 64 // OLDEST] * first
    assert 0.4 < sum(shares[first + 1 :]) / (64 * (60 - first - 1)) < 0.6
    old.cancel()
    new.cancel()
    device.run_free()
    queue.close()


def test_a_device_begins_a_full_batch_behind_the_one_it_runs_and_no_small_one() -> None:
    device = Device(rows=8, ahead=1, free=False)
    queue = Queue([device])
    first = queue.submit(stretch(0, range(3)))
    device.wait_begun()
    others = [queue.submit(stretch(i, range(9))) for i in (1, 2)]
    device.step()
    for _ in range(2):
        assert len(rows_of(device.wait_begun())) == 8
    assert len(device.begun) == 3  # two of them run; the last two rows wait until nothing does
    device.run_free()
    assert all(same(result(each), alone(each.stretch)) for each in (first, *others))
    assert len(rows_of(device.begun[3])) == 2
    queue.close()


def test_spare_rows_fill_what_is_computed_anyway_and_idle_devices() -> None:
    device = Device(rows=8, grain=4, free=False)
    queue = Queue([device])
    first = queue.submit(stretch(0, range(1)))
    device.wait_begun()
    spare = queue.submit(stretch(1, range(100)), spare=True)
    wanted = queue.submit(stretch(2, range(6)))
    assert queue.waiting == 6
    device.step()
    batch = device.wait_begun()
    assert [(one, len(copies)) for one, copies in batch] == [(wanted.stretch, 6), (spare.stretch, 2)]
    device.step()
    batch = device.wait_begun()  # nobody else wants the device
    assert [(one, len(copies)) for one, copies in batch] == [(spare.stretch, 8)]
    queue.want(spare)
    assert queue.waiting == 90
    device.run_free()
    assert all(same(result(each), alone(each.stretch)) for each in (first, wanted, spare))
    queue.close()


def test_one_can_ask_how_many_rows_wait() -> None:
    device = Device(rows=4, free=False)
    queue = Queue([device])
    queue.submit(stretch(0, range(10)))
    device.wait_begun()
    assert queue.waiting == 6
    other = queue.submit(stretch(1, range(7)))
    assert queue.waiting == 13
    other.cancel()
    assert queue.waiting == 6
    device.run_free()
    queue.close()
    assert queue.waiting == 0


# --- cancelling and failing ----------------------------------------------------------------------------


def test_statistics_say_what_was_computed_how_full_batches_were_and_what_is_left() -> None:
    device = Device(rows=4, free=False)
    queue = Queue([device, Device(rows=4, faults=[DeviceLost("gone")])])
    done = queue.submit(stretch(1, range(6)))
    device.run_free()
    result(done)
    queue.close()
    found = queue.statistics
    assert found.copies == 6
    assert found.waiting == 0
    assert found.room == 4 * found.batches
    assert found.batches >= 2
    assert found.devices == 0


def test_the_rate_counts_only_the_time_in_which_a_device_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("fvit.runtime.queue.time.perf_counter", lambda: now[0])
    device = Device(rows=4, free=False)
    queue = Queue([device])
    assert queue.statistics.rate is None
    for _ in range(3):
        counted = queue.submit(stretch(1, range(4)))
        device.wait_begun()
        now[0] += 2.0
        device.step()
        result(counted)
        now[0] += 1000.0  # nothing to do
    assert queue.statistics.rate == pytest.approx(4 / 2.0)
    for _ in range(20):  # twice as fast: what is longer ago than LATE counts no more
        counted = queue.submit(stretch(1, range(4)))
        device.wait_begun()
        now[0] += 1.0
        device.step()
        result(counted)
    assert queue.statistics.rate == pytest.approx(4.0)
    queue.close()


def test_cancelling_frees_the_rows_from_the_next_batch_on() -> None:
    device = Device(rows=4, free=False)
    queue = Queue([device])
    long, other = queue.submit(stretch(0, range(1000))), queue.submit(stretch(1, range(8)))
    device.wait_begun()
    assert long.cancel()
    assert queue.waiting == 8
    device.run_free()
    assert same(result(other), alone(other.stretch))
    assert all(one is other.stretch for batch in device.begun[1:] for one, _ in batch)
    with pytest.raises(CancelledError):
        long.result()
    queue.close()


def test_a_failing_batch_fails_its_own_stretches_and_the_queue_goes_on() -> None:
    device = Device(rows=4, free=False)
    queue = Queue([device])
    one, other = queue.submit(stretch(0, range(4))), queue.submit(stretch(1, range(4)))
    device.wait_begun()
    device.faults.append(RuntimeError("bad kernel"))
    device.run_free()
    with pytest.raises(FvitError, match="engine failed: RuntimeError: bad kernel"):
        result(one)
    assert same(result(other), alone(other.stretch))
    queue.close()


def test_who_is_told_of_copies_may_fail_itself_alone() -> None:
    def broken(copies: int) -> None:
        raise ValueError("the progress bar is closed")

    device = Device(rows=8, free=False)
    queue = Queue([device])
    first = queue.submit(stretch(9, range(1)))
    device.wait_begun()
    told, other = queue.submit(stretch(0, range(4), on_copies=broken)), queue.submit(stretch(1, range(4)))
    device.run_free()
    with pytest.raises(FvitError, match="the progress bar is closed"):
        result(told)
    assert same(result(other), alone(other.stretch))
    assert same(result(first), alone(first.stretch))
    queue.close()


def test_a_device_that_is_lost_leaves_its_rows_to_the_others() -> None:
    devices = [Device(rows=4, free=False), Device(rows=4, free=False)]
    queue = Queue(devices)
    counted = queue.submit(stretch(0, range(100)))
    for device in devices:
        device.wait_begun()
    devices[0].faults.append(DeviceLost("fell off the bus"))
    devices[0].step()
    devices[1].run_free()
    assert same(result(counted), alone(counted.stretch))
    assert devices[0].closed
    assert len(devices[0].begun) == 1
    queue.close()


def test_without_a_device_everything_open_fails_with_its_reason() -> None:
    device = Device(rows=4, free=False)
    queue = Queue([device])
    open_ones = [queue.submit(stretch(i, range(10))) for i in range(3)]
    device.wait_begun()
    device.faults.append(DeviceLost("fell off the bus"))
    device.run_free()
    for counted in open_ones:
        with pytest.raises(DeviceLost, match="fell off the bus"):
            result(counted)
    with pytest.raises(FvitError, match="no device is left: fell off the bus"):
        queue.submit(stretch(0, range(1)))
    queue.close()


# --- any schedule --------------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"), st.integers(0, 3), st.integers(0, 20), st.integers(0, 30),
            st.sampled_from([0.12, 0.25, 1.0]), st.integers(0, 2), st.booleans(),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("want"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(0, 2)),
        st.tuples(st.just("fail"), st.integers(0, 2)),
        st.tuples(st.just("lose"), st.integers(1, 2)),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    actions=ACTIONS,
    shapes=st.tuples(*[st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(0, 1))] * 3),
)
def test_in_any_schedule_every_copy_is_counted_once(
    actions: list[tuple[object, ...]], shapes: tuple[tuple[int, int, int], ...]
) -> None:
    """Submissions, cancellations, failures of batches and of devices, late arrivals, mixed σ, sizes and keys:
    what is not cancelled and does not fail equals the serial result to the bit. Device 0 is never lost."""
    devices = [Device(rows=r, grain=g, ahead=a, free=False) for r, g, a in shapes]
    queue = Queue(devices)
    submitted: list[Counted] = []
    cancelled: set[int] = set()
    spares: set[int] = set()
    for name, *given_ in actions:
        numbers = [int(each) for each in given_ if not isinstance(each, float)]  # type: ignore[call-overload]
        if name == "submit":
            number, first, length, sigma, key, spare = given_
            made = Stretch(
                picture(int(number), side=2 + int(number) % 2),  # type: ignore[call-overload]
                range(int(first), int(first) + int(length)),  # type: ignore[call-overload]
                sigma=float(sigma), key=int(key),  # type: ignore[arg-type, call-overload]
                tally=Tally(CLASSES, TOKENS, (1, 2)),
            )  # fmt: skip
            if spare:
                spares.add(len(submitted))
            submitted.append(queue.submit(made, spare=bool(spare)))
        elif name == "step":
            devices[numbers[0]].step()
        elif name == "fail":
            devices[numbers[0]].faults.append(RuntimeError("chance"))
        elif name == "lose":
            devices[numbers[0]].faults.append(DeviceLost("chance"))
        elif numbers[0] < len(submitted):
            if name == "want":
                queue.want(submitted[numbers[0]])
                spares.discard(numbers[0])
            elif submitted[numbers[0]].cancel():
                cancelled.add(numbers[0])
    for number in spares:
        queue.want(submitted[number])
    for device in devices:
        device.run_free()
    _, waiting = wait_for([each for i, each in enumerate(submitted) if i not in cancelled], timeout=LIMIT)
    assert not waiting
    assert queue.waiting == 0
    for i, counted in enumerate(submitted):
        if i in cancelled:
            assert counted.cancelled()
        elif counted.exception() is None:
            assert same(counted.result(), alone(counted.stretch))
        else:
            assert "chance" in str(counted.exception())
    queue.close()
    begun = Multiset(row for device in devices for batch in device.begun for row in rows_of(batch))
    lost = any(isinstance(fault, DeviceLost) for device in devices for fault in device.faults) or any(
        name == "lose" for name, *_ in actions
    )
    assert lost or not begun or max(begun.values()) == 1
    assert all(device.closed for device in devices)


# --- the end -------------------------------------------------------------------------------------------


def _fvit_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("fvit-device")}


def test_closing_finishes_what_is_open_and_ends_the_threads() -> None:
    before, device = _fvit_threads(), Device(rows=4)
    queue = Queue([device])
    counted = [queue.submit(stretch(i, range(50))) for i in range(4)]
    queue.close()
    assert all(same(each.result(timeout=0), alone(each.stretch)) for each in counted)
    assert device.closed
    assert _fvit_threads() == before
    with pytest.raises(FvitError, match=r"closed: load the bundle again with fvit\.load"):
        queue.submit(stretch(0, range(1)))


def test_closing_may_cancel_instead() -> None:
    device = Device(rows=4, free=False)
    queue = Queue([device])
    counted = [queue.submit(stretch(i, range(50))) for i in range(4)]
    device.wait_begun()
    closing = threading.Thread(target=queue.close, kwargs={"cancel": True})
    closing.start()
    device.run_free()
    closing.join(LIMIT)
    assert not closing.is_alive()
    assert all(each.cancelled() for each in counted)


def test_a_queue_that_is_dropped_keeps_no_thread() -> None:
    before, devices = _fvit_threads(), [Device(), Device()]
    queue = Queue(devices)
    result(queue.submit(stretch(0, range(10))))
    threads = _fvit_threads() - before
    del queue
    gc.collect()
    for thread in threads:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in threads)
    assert all(device.closed for device in devices)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_use_in_a_forked_child_is_a_clear_error_and_closing_there_is_nothing() -> None:
    device = Device(free=False)
    queue = Queue([device])
    under_way = queue.submit(stretch(0, range(10)))
    device.wait_begun()
    child = os.fork()
    if child == 0:
        try:
            under_way.cancel()
            queue.close(cancel=True)
            queue.submit(stretch(0, range(1)))
        except FvitError as error:
            os._exit(17 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    device.run_free()
    assert same(result(under_way), alone(under_way.stretch))
    queue.close()
