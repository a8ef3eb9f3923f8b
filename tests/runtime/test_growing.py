"""Growing: looks fall where they are planned, whatever the devices do meanwhile."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import numpy as np
import pytest

from fvit.certificates.tally import Tally
from fvit.errors import FvitError
from fvit.runtime.growing import Growing
from fvit.runtime.queue import TURN, Queue
from tests.runtime.test_queue import LIMIT, Device, alone, same, stretch

LOOKS = (3, 4, 5, 9, 30)


@pytest.mark.parametrize("rows", [1, 4, 64])
@pytest.mark.parametrize("ahead", [0, 7, 1000])
def test_each_look_sees_exactly_its_copies_in_any_batch(rows: int, ahead: int) -> None:
    queue, whole = Queue([Device(rows=rows, grain=rows), Device(rows=3)]), stretch(1, range(30))
    seen: list[tuple[int, bool]] = []

    def judge(growing: Growing[str]) -> str | None:
        expected = alone(stretch(1, range(growing.tally.copies)))
        seen.append((growing.tally.copies, same(growing.tally, expected)))
        return "enough" if growing.tally.copies == 9 else None

    with ThreadPoolExecutor(1) as claims:
        growing = Growing(queue, claims, whole, looks=LOOKS, judge=judge, ahead=ahead)
        assert growing.result(timeout=LIMIT) == "enough"
    assert seen == [(look, True) for look in LOOKS[:4]]
    queue.close()
    assert queue.waiting == 0


def test_what_follows_a_look_is_spare_until_it_is_wanted() -> None:
    device = Device(rows=8, grain=8, free=False)
    queue, judged = Queue([device]), threading.Event()
    with ThreadPoolExecutor(1) as claims:
        growing: Growing[None] = Growing(
            queue, claims, stretch(1, range(30)), looks=LOOKS, judge=lambda _: judged.set(), ahead=8
        )
        first = device.wait_begun()  # three wanted, and five of what may follow
        assert [len(copies) for _, copies in first] == [3, 1, 1, 3]
        assert queue.waiting == 0
        device.run_free()
        assert judged.wait(LIMIT)
        growing.cancel()
    queue.close()


def test_looks_are_as_old_as_the_first_and_so_have_the_oldest_share() -> None:
    """However many short requests keep coming while it grows."""
    device = Device(rows=8, free=False)
    queue, whole = Queue([device]), stretch(1, range(TURN + 80))
    looks, judged = range(8, TURN + 81, 8), threading.Semaphore(0)
    with ThreadPoolExecutor(1) as claims:
        growing: Growing[str] = Growing(
            queue, claims, whole, looks=looks, judge=lambda _: judged.release(), ahead=0
        )
        served = waited = 0
        while served < TURN + 72:
            while queue.waiting < 100:
                queue.submit(stretch(2, range(8)))
            batch = device.wait_begun()
            share = sum(len(copies) for one, copies in batch if one.picture is whole.picture)
            served, waited = served + share, 0 if share else waited + 1
            # Between two looks nothing of it waits: for the batch that was taken meanwhile.
            assert waited <= 1
            device.step()
            if served % 8 == 0 and share:
                assert judged.acquire(timeout=LIMIT)
        growing.cancel()
    device.run_free()
    queue.close()


def test_cancelling_frees_everything_and_nobody_is_asked_again() -> None:
    device = Device(rows=2, free=False)
    queue = Queue([device])
    with ThreadPoolExecutor(1) as claims:
        growing: Growing[str] = Growing(
            queue, claims, stretch(1, range(30)), looks=LOOKS, judge=lambda _: None, ahead=100
        )
        device.wait_begun()
        assert growing.cancel()
        assert wait([growing], timeout=LIMIT).done  # whoever waits is told
        with pytest.raises(CancelledError):
            growing.result(timeout=LIMIT)
        assert queue.waiting == 0
        device.run_free()
        queue.close()
    assert len(device.begun) == 1


def test_a_failing_batch_and_a_failing_judge_reach_the_caller() -> None:
    device = Device(rows=50)
    queue = Queue([device])

    def judge(growing: Growing[Tally]) -> Tally | None:
        raise FvitError("no certificate")

    with ThreadPoolExecutor(1) as claims:
        with pytest.raises(FvitError, match="no certificate"):
            Growing(queue, claims, stretch(1, range(5)), looks=(5,), judge=judge, ahead=0).result(LIMIT)
        device.faults.append(RuntimeError("bad kernel"))
        with pytest.raises(FvitError, match="bad kernel"):
            Growing(queue, claims, stretch(2, range(5)), looks=(5,), judge=judge, ahead=0).result(LIMIT)
    queue.close()


@pytest.mark.parametrize("looks", [(30,), LOOKS])
def test_every_copy_that_is_looked_at_is_told_of(looks: tuple[int, ...]) -> None:
    told: list[int] = []
    queue, whole = Queue([Device(rows=4)]), stretch(1, range(30), on_copies=told.append)
    with ThreadPoolExecutor(1) as claims:
        growing = Growing(
            queue, claims, whole, looks=looks, ahead=100,
            judge=lambda growing: growing.tally if growing.tally.copies == 30 else None,
        )  # fmt: skip
        assert np.array_equal(growing.result(timeout=LIMIT).counts, alone(whole).counts)
    queue.close()
    assert sum(told) == 30


def test_an_answer_comes_where_the_threads_of_the_claims_have_ended() -> None:
    """As at the end of an interpreter, whose other threads still wait for it."""
    device = Device(rows=4, free=False)
    queue, claims = Queue([device]), ThreadPoolExecutor(1)
    growing = Growing(
        queue, claims, stretch(1, range(5)), looks=(5,), judge=lambda growing: growing.tally, ahead=0
    )
    claims.shutdown()
    device.run_free()
    assert same(growing.result(timeout=LIMIT), alone(stretch(1, range(5))))
    queue.close()
