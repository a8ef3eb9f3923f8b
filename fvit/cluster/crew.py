"""The workers of a run: started where there is room, replaced where they are lost, let go in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fvit.certificates.terms import Terms
from fvit.cluster.connecting import ray_module
from fvit.cluster.travel import Packed, packed
from fvit.cluster.worker import Setting, Started, Worker
from fvit.errors import FvitError
from fvit.runtime.bundle import Bundle
from fvit.runtime.images import Picture

LOOKED = 2.0
"""Seconds between two looks at what the cluster has."""

PATIENCE = 15.0
"""Seconds without any worker after which it is said what they wait for."""

ROUNDS = 3
"""So many times as many workers as ever ran at once may be lost without one picture done in between."""

LONGEST_PAUSE = 60.0
"""Seconds before another worker is started, at the most, where those before could not start."""


@dataclass(frozen=True)
class Needs:
    """What a worker takes of its node."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        cores = f"{self.cpus} core{'s' * (self.cpus != 1)}"
        return f"{self.gpus} GPU{'s' * (self.gpus != 1)} and {cores}" if self.gpus else cores


@dataclass(frozen=True, eq=False)
class Job:
    """A picture to certify on terms that have a seed: whoever does it, it comes to the same."""

    picture: Picture
    terms: Terms


@dataclass(eq=False)
class Member:
    """One worker. calls: what it has been asked and not answered, with the job where it is one; host, rows:
    once it is ready, which `starting` tells of until then. under_way: copies counted of jobs that are not
    done, when it was last asked."""

    actor: Any
    starting: Any = None
    host: str = ""
    rows: int = 0
    jobs: dict[Any, Job] = field(default_factory=dict)
    asked: Any = None
    under_way: int = 0


class Crew:
    """All workers of a run.

    own: whether the cluster is this run's own, and will not grow. note: is told what happens to workers.
    """

    def __init__(
        self, bundle: Bundle, setting: Setting, needs: Needs, *, own: bool, note: Callable[[str], Any]
    ) -> None:
        self._ray = ray_module()
        self._bundle, self._setting, self._needs, self._own, self._note = bundle, setting, needs, own, note
        self._hired = self._ray.remote(Worker).options(num_cpus=needs.cpus, num_gpus=needs.gpus)
        self._members: list[Member] = []
        self._files: Packed | None = None
        self._room, self._looked = 0, -LOOKED
        self._lost, self._most = 0, 0
        self._pause, self._not_before = 0.0, 0.0
        self._since: float | None = time.monotonic()  # there is no worker that is ready

    @property
    def ready(self) -> list[Member]:
        """The workers that take jobs."""
        return [member for member in self._members if member.starting is None]

    @property
    def busy(self) -> bool:
        """Whether any has a job."""
        return any(member.jobs for member in self._members)

    def staff(self, jobs: int) -> None:
        """Have as many workers as there are jobs to give, or the cluster has room for.

        Beyond that room as many again as are ready are asked for, and wait: an autoscaler sees them, and
        one is there at once in the place of another that is lost. Raises FvitError where no node is left, or
        a cluster of this run's own is too small for one.
        """
        now, ready = time.monotonic(), self.ready
        if now >= self._looked + LOOKED:
            nodes = [node for node in self._ray.nodes() if node["Alive"]]
            if not nodes:
                raise FvitError("the Ray cluster has ended: give the command again to go on where it stopped")
            self._room, self._looked = sum(_room(node["Resources"], self._needs) for node in nodes), now
            if self._own and not self._room:
                raise FvitError(f"a worker takes {self._needs}, more than this machine has: lower --cores")
        spare = 0 if self._own else max(1, len(ready))
        wanted = min(sum(bool(member.jobs) for member in ready) + jobs, self._room + spare)
        if now >= self._not_before:
            for _ in range(wanted - len(self._members)):
                actor = self._hired.remote(self._setting)
                self._members.append(Member(actor, actor.start.remote()))
        if ready or not wanted:
            self._since = now
        elif self._since is not None and now > self._since + PATIENCE:
            self._since = None
            free = self._ray.available_resources()
            self._note(
                f"no worker is ready yet: each takes {self._needs}, and the cluster has "
                f"{free.get('CPU', 0):g} cores and {free.get('GPU', 0):g} GPUs free"
            )

    def give(self, member: Member, job: Job, *, seconds: float | None, drawn: bool) -> None:
        """Ask a worker for a certificate."""
        answer = member.actor.certify.remote(job.picture, job.terms, seconds=seconds, drawn=drawn)
        member.jobs[answer] = job

    def answered(self, seconds: float) -> Iterator[tuple[Member, Any]]:
        """Workers that have become ready are; those that have answered a job, and where the answer is, once
        there are some or so many seconds have passed."""
        asked = {member.starting: member for member in self._members if member.starting is not None}
        asked |= {answer: member for member in self._members for answer in member.jobs}
        if not asked:
            time.sleep(seconds)
            return
        first, others = self._ray.wait(list(asked), timeout=seconds)
        more, _ = self._ray.wait(others, num_returns=len(others), timeout=0) if others else ([], [])
        for answer in [*first, *more]:
            member = asked[answer]
            if member.starting is answer:
                self._started(member)
            elif answer in member.jobs:  # and not lost meanwhile
                yield member, answer

    def done(self, member: Member, answer: Any, *, copies: int) -> Job:
        """A job is done, with so many copies."""
        self._lost = 0
        member.under_way = max(0, member.under_way - copies)
        return member.jobs.pop(answer)

    def lose(self, member: Member, error: Exception) -> list[Job]:
        """A worker is no good any more; the jobs that it leaves.

        Raises FvitError where workers are lost again and again and nothing is done in between.
        """
        self._ray.kill(member.actor)
        self._members.remove(member)
        self._lost += 1
        if self._lost >= ROUNDS * max(1, self._most):
            if isinstance(error, FvitError):
                raise error
            raise FvitError(
                f"{self._lost} workers were lost in a row before one of them had an image done; the last: "
                f"{_reason(error)}"
            ) from error
        left = list(member.jobs.values())
        member.jobs.clear()
        where = f" on {member.host}" if member.host else ""
        self._note(
            f"a worker{where} was lost ({_reason(error)}); images that it leaves to others: {len(left)}"
        )
        return left

    def let_go(self) -> None:
        """There is nothing left to give: who has nothing to do may go, and so may its node."""
        for member in [member for member in self._members if not member.jobs]:
            self._ray.kill(member.actor)
            self._members.remove(member)

    def under_way(self) -> int:
        """Copies counted of jobs that are not done, as far as workers have said."""
        ready = self.ready
        asked = {member.asked: member for member in ready if member.asked is not None}
        said, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0) if asked else ([], [])
        for answer in said:
            member = asked[answer]
            member.asked = None
            with suppress(self._ray.exceptions.RayError):  # a loss shows in its jobs
                member.under_way = self._ray.get(answer)
        for member in ready:
            if member.asked is None:
                member.asked = member.actor.under_way.remote()
        return sum(member.under_way for member in ready)

    def _started(self, member: Member) -> None:
        try:
            found: Started | None = self._ray.get(member.starting)
        except self._ray.exceptions.RayTaskError as error:
            self._failed(member, told(error.cause))
        except self._ray.exceptions.RayError as error:
            self._failed(member, error)
        else:
            if found is None:  # its node does not have the bundle
                self._files = self._files or packed(self._bundle)
                member.starting = member.actor.start.remote(self._files)
                return
            member.starting, member.host, member.rows = None, found.host, found.rows
            self._most, self._pause = max(self._most, len(self.ready)), 0.0

    def _failed(self, member: Member, error: Exception) -> None:
        self._pause = min(LONGEST_PAUSE, max(1.0, 2 * self._pause))
        self._not_before = time.monotonic() + self._pause
        self.lose(member, error)


def _room(node: Mapping[str, float], needs: Needs) -> int:
    """How many workers a node with these resources has room for when nothing else is on it."""
    cpus = int(node.get("CPU", 0) // needs.cpus)
    return min(cpus, int(node.get("GPU", 0) // needs.gpus)) if needs.gpus else cpus


def told(cause: Exception) -> FvitError:
    """What a worker's model raised, as something for a person to read."""
    if isinstance(cause, FvitError):
        return cause
    return FvitError(f"a worker failed: {type(cause).__name__}: {cause}")


def _reason(error: Exception) -> str:
    """The first sentence of the last thing that an error says: Ray's say a lot before and after."""
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return last.split(". ")[0].rstrip(".")
