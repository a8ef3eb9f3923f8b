"""How many workers there are, and what becomes of those that are lost; on a cluster that obeys the test."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvit.cluster import crew as module
from fvit.cluster.crew import PATIENCE, ROUNDS, Crew, Job, Needs
from fvit.cluster.worker import Setting, Started
from fvit.errors import FvitError
from fvit.runtime.bundle import Bundle
from tests.runtime.test_bundle import MANIFEST
from tests.runtime.test_journal import TERMS, picture

Answer = Callable[[], Any]
SETTING = Setting(Path("b"), ("b" * 64, "p"), "cpu", None, cores=1, version="1", code="c")


class RayError(Exception):
    """As Ray has it."""


class RayTaskError(RayError):
    """As Ray has it."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class Cluster:
    """Ray and its nodes: workers start where there is a core when the test lets them, and fail as it says."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, *, cores: int) -> None:
        self.cores = cores
        self.hired: list[Any] = []
        self.killed: list[Any] = []
        self.answers: dict[Answer, Any] = {}

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **needs: SimpleNamespace(remote=self._hire))

    def _hire(self, setting: Setting) -> Any:
        def call(*asked: Any, **named: Any) -> Answer:
            return lambda: None  # each is another

        actor = SimpleNamespace(**{name: SimpleNamespace(remote=call) for name in ("start", "certify")})
        self.hired.append(actor)
        return actor

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": float(self.cores)}}]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 0.5}

    def wait(
        self, answers: list[Answer], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Answer], list[Answer]]:
        there = [answer for answer in answers if answer in self.answers][:num_returns]
        return there, [answer for answer in answers if answer not in there]

    def get(self, answer: Answer) -> Any:
        if isinstance(found := self.answers[answer], Exception):
            raise found
        return found

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fvit.cluster.crew.time.monotonic", clock)
    return clock


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster(cores=4)
    monkeypatch.setattr(module, "ray_module", lambda: cluster)
    return cluster


def crew_on(cluster: Cluster, notes: list[str], *, own: bool = False) -> Crew:
    return Crew(Bundle(Path("b"), MANIFEST, "b" * 64), SETTING, Needs(1, 0), own=own, note=notes.append)


def let_start(crew: Crew, cluster: Cluster, count: int, found: Any = None) -> None:
    """So many of those that are starting are ready, or fail with this."""
    starting = [member for member in crew._members if member.starting is not None][:count]
    for member in starting:
        cluster.answers[member.starting] = found or Started("node", rows=4)
    assert list(crew.answered(0)) == []


def job(number: int) -> Job:
    return Job(picture(number), TERMS)


def test_a_cluster_is_filled_and_asked_for_as_much_again(cluster: Cluster, clock: Clock) -> None:
    """Which an autoscaler sees; nodes that come are filled in turn."""
    crew = crew_on(cluster, [])
    crew.staff(100)
    assert len(cluster.hired) == 4 + 1
    let_start(crew, cluster, 4)
    crew.staff(100)
    assert len(cluster.hired) == 4 + 4
    cluster.cores, clock.now = 8, 10.0
    let_start(crew, cluster, 4)
    crew.staff(100)
    assert len(cluster.hired) == 8 + 8


def test_there_are_no_more_workers_than_images(cluster: Cluster, clock: Clock) -> None:
    crew = crew_on(cluster, [])
    crew.staff(2)
    assert len(cluster.hired) == 2
    let_start(crew, cluster, 1)
    (member,) = crew.ready
    crew.give(member, job(1), seconds=None, drawn=False)
    crew.staff(1)
    assert len(cluster.hired) == 2
    crew.staff(2)
    assert len(cluster.hired) == 3


def test_a_cluster_of_ones_own_does_not_grow(cluster: Cluster, clock: Clock) -> None:
    crew = crew_on(cluster, [], own=True)
    crew.staff(100)
    let_start(crew, cluster, 4)
    crew.staff(100)
    assert len(cluster.hired) == 4
    cluster.cores, clock.now = 0, 10.0
    with pytest.raises(FvitError, match="a worker takes 1 core, more than this machine has"):
        crew.staff(100)


def test_the_jobs_of_a_lost_worker_are_given_back_and_another_comes(cluster: Cluster, clock: Clock) -> None:
    notes: list[str] = []
    crew = crew_on(cluster, notes)
    crew.staff(100)
    let_start(crew, cluster, 4)
    member, jobs = crew.ready[0], [job(1), job(2)]
    for each in jobs:
        crew.give(member, each, seconds=None, drawn=False)
    answers = list(member.jobs)
    cluster.answers |= dict.fromkeys(answers, RayError("It died. Because of that. And more"))
    for lost, answer in crew.answered(0):
        with pytest.raises(RayError) as caught:
            cluster.get(answer)
        assert crew.lose(lost, caught.value) == jobs  # and its other answer is none any more
    assert cluster.killed == [member.actor] and member not in crew.ready
    assert notes == ["a worker on node was lost (It died); images that it leaves to others: 2"]
    crew.staff(100)
    assert len(cluster.hired) - len(cluster.killed) == 4 + 3


def test_workers_that_die_and_die_end_the_run(cluster: Cluster, clock: Clock) -> None:
    crew = crew_on(cluster, [])
    lost = 0
    with pytest.raises(
        FvitError, match=f"{ROUNDS * 4} workers were lost in a row .*; the last: out of memory"
    ):
        for _ in range(100):
            crew.staff(100)
            let_start(crew, cluster, 4)
            for member in crew.ready:
                crew.lose(member, RayError("out of memory"))
                lost += 1
    assert lost == ROUNDS * 4 - 1


def test_one_image_done_starts_the_count_anew(cluster: Cluster, clock: Clock) -> None:
    """A cluster whose nodes are taken again and again still gets there."""
    crew = crew_on(cluster, [])
    for _ in range(10):
        crew.staff(100)
        let_start(crew, cluster, 4)
        for member in crew.ready:
            crew.give(member, job(1), seconds=None, drawn=False)
            crew.done(member, next(iter(member.jobs)), copies=10)
            crew.lose(member, RayError("taken"))


def test_who_cannot_start_is_not_tried_without_a_pause_and_says_why_in_the_end(
    cluster: Cluster, clock: Clock
) -> None:
    notes: list[str] = []
    crew = crew_on(cluster, notes)
    reason = RayTaskError(FvitError("this node has no such device"))
    crew.staff(1)
    let_start(crew, cluster, 1, reason)
    crew.staff(1)
    assert len(cluster.hired) == 1
    clock.now = 1.5
    crew.staff(1)
    assert len(cluster.hired) == 2
    let_start(crew, cluster, 1, reason)
    clock.now = 3.0
    crew.staff(1)
    assert len(cluster.hired) == 2
    clock.now = 4.0
    crew.staff(1)
    with pytest.raises(FvitError, match="^this node has no such device$"):
        let_start(crew, cluster, 1, reason)
    assert notes[0].startswith("a worker was lost (this node has no such device)")


def test_a_cluster_without_room_is_waited_for_with_a_word(cluster: Cluster, clock: Clock) -> None:
    cluster.cores, notes = 0, list[str]()
    crew = crew_on(cluster, notes)
    for clock.now in (0.0, PATIENCE - 1, PATIENCE + 1, 3 * PATIENCE):
        crew.staff(100)
    assert notes == [
        "no worker is ready yet: each takes 1 core, and the cluster has 0.5 cores and 0 GPUs free"
    ]
    assert len(cluster.hired) == 1


def test_in_the_end_who_has_nothing_to_do_is_let_go(cluster: Cluster, clock: Clock) -> None:
    crew = crew_on(cluster, [])
    crew.staff(100)
    let_start(crew, cluster, 3)
    busy = crew.ready[1]
    crew.give(busy, job(1), seconds=None, drawn=False)
    crew.let_go()
    assert crew.ready == [busy] and crew.busy
    assert len(cluster.killed) == len(cluster.hired) - 1
    crew.staff(0)
    assert len(cluster.hired) == 5
