"""Allowances and waiting rows, by the clock of the test."""

from collections.abc import Callable

import pytest

from fvit.runtime.queue import Queue
from fvit.service.limits import Bucket, Limits, Meter, check_waiting
from fvit.service.problems import Problem
from tests.runtime.test_queue import LIMIT, Device, stretch

LIMITS = Limits(body=1, pixels=1, n=100, seconds=1, waiting=50, requests=2, copies=60)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr("fvit.service.limits.time.monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def test_a_bucket_fills_at_its_rate_and_never_beyond(clock: Callable[[float], None]) -> None:
    bucket = Bucket(60)
    assert bucket.seconds_until(60) == 0
    bucket.level -= 90
    assert bucket.seconds_until(30) == pytest.approx(60)
    clock(60)
    assert bucket.seconds_until(30) == pytest.approx(0)
    clock(10_000)
    assert bucket.seconds_until(61) == pytest.approx(1)


def test_keys_are_counted_each_on_its_own_and_the_answer_says_when(clock: Callable[[float], None]) -> None:
    meter = Meter(LIMITS)
    meter.take("anna", copies=50)
    with pytest.raises(Problem) as caught:
        meter.take("anna", copies=20)
    assert caught.value.headers["Retry-After"] == "10"
    meter.take("otto", copies=50)
    clock(10)
    meter.take("anna", copies=20)
    with pytest.raises(Problem, match="2 requests a minute"):
        meter.take("anna", copies=0)
    meter.add("anna", copies=60)  # a refinement that drew more than it began with
    clock(60)
    with pytest.raises(Problem, match="60 copies a minute"):
        meter.take("anna", copies=1)


def test_too_many_waiting_rows_are_refused_until_the_queue_has_had_time() -> None:
    device = Device(rows=10, free=False)
    queue = Queue([device])
    first = queue.submit(stretch(1, range(10)))
    device.wait_begun()
    device.step()
    first.result(LIMIT)
    counted = queue.submit(stretch(1, range(60)))
    device.wait_begun()
    assert queue.waiting == 50
    with pytest.raises(Problem) as caught:
        check_waiting(queue, 20, most=LIMITS.waiting)
    rate = queue.statistics.rate
    assert rate is not None
    assert caught.value.status == 429
    assert int(caught.value.headers["Retry-After"]) >= 20 / rate
    check_waiting(queue, 0, most=LIMITS.waiting)
    device.run_free()
    counted.result(LIMIT)
    check_waiting(queue, 20, most=LIMITS.waiting)
    queue.close()


def test_what_can_never_be_served_is_no_matter_of_waiting() -> None:
    LIMITS.check_copies(50)
    with pytest.raises(Problem, match="up to 50 copies") as caught:
        LIMITS.check_copies(51)
    assert caught.value.status == 422
