"""fvit-certify --ray: pictures go out to workers, certificates come in."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from operator import length_hint
from pathlib import Path
from threading import Event
from typing import Any

from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.cluster.connecting import LOCAL, check_address, connected, ray_module
from fvit.cluster.crew import Crew, Job, Member, Needs, told
from fvit.cluster.travel import identity
from fvit.cluster.worker import PNG, Drawn, Setting
from fvit.errors import FvitError
from fvit.runtime.batching import code
from fvit.runtime.bundle import open_bundle
from fvit.runtime.certifier import Certified
from fvit.runtime.faithful import at_once, drawn_seed
from fvit.runtime.images import Picture
from fvit.runtime.loading import ON_CPU, ON_GPU, Batch

BEAT = 0.5
"""Seconds between two looks at the number of workers, their progress and an interruption, at the most."""

ANSWER = 60.0
"""Seconds in which an answer that a worker has given has to reach this process."""

TRIES = 3
"""Workers that may fail at one picture, each anew. Their deaths do not count: no picture causes them, because
what is sent are its pixels."""


class Cluster:
    """Certifies on a Ray cluster.

    address: as `connected` has it. device, batch: of each worker, as fvit.load has them; a worker counts its
    GPUs from 0 on. cores: that a worker takes; unless told all of the smallest node's, and 1 beside a GPU.
    note: is told what happens to workers.
    Raises FvitError where Ray is not installed, the bundle is missing or damaged, or the device is none.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        address: str | None,
        device: str,
        batch: Batch | None,
        cores: int | None,
        note: Callable[[str], Any],
    ) -> None:
        check_address(address)
        self._ray = ray_module()
        self._gpus = _gpus(device)
        self.bundle = open_bundle(bundle)
        self._address, self._device, self._batch, self._cores = address, device, batch, cores
        self._note, self._cancelled = note, Event()

    def cancel(self) -> None:
        """Give up. Once, from any thread."""
        self._cancelled.set()

    def certify(
        self,
        pictures: Iterable[Picture],
        terms: Terms,
        *,
        seconds: float | None,
        drawn: bool,
        on_copies: Callable[[int], Any] | None,
    ) -> Generator[Certified, None, None]:
        """As Certifier has it; CancelledError once it is cancelled."""
        jobs = _Jobs(iter(pictures), terms)
        if not jobs.more:  # all of them are done: no cluster is needed
            return
        with connected(self._address) as found:
            if found is not None and self._address is None:
                self._note(f"on the Ray cluster at {found}, which was there; --ray {LOCAL} starts one")
            crew = self._crew(own=found is None)
            failed: Counter[Job] = Counter()
            progress = _Progress(on_copies)
            while jobs.more or crew.busy:
                self._check()
                crew.staff(len(jobs))
                hungry = self._give(crew, jobs, terms, seconds=seconds, drawn=drawn)
                if not jobs.more:
                    crew.let_go()
                for member, answer in crew.answered(0 if hungry else BEAT):
                    self._check()
                    try:
                        certificate, files = self._ray.get(answer, timeout=ANSWER)
                    except self._ray.exceptions.RayTaskError as error:
                        reason = told(error.cause)
                        failed[member.jobs[answer]] += 1
                        if failed[member.jobs[answer]] == TRIES:
                            raise reason from error
                        jobs.again(crew.lose(member, reason))
                    except self._ray.exceptions.RayError as error:
                        jobs.again(crew.lose(member, error))
                    else:
                        job = crew.done(member, answer, copies=certificate.copies)
                        progress.done(certificate)
                        yield Certified(job.picture, certificate, partial(_write, files))
                if on_copies is not None:
                    progress.show(crew.under_way())

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError

    def _crew(self, *, own: bool) -> Crew:
        needs = _needs(self._ray.nodes(), gpus=self._gpus, cores=self._cores)
        setting = Setting(
            self.bundle.folder.absolute(), identity(self.bundle), self._device, self._batch,
            cores=None if needs.gpus else needs.cpus, version=version("fvit"), code=code(),
        )  # fmt: skip
        return Crew(self.bundle, setting, needs, own=own, note=self._note)

    def _give(
        self, crew: Crew, jobs: _Jobs, terms: Terms, *, seconds: float | None, drawn: bool
    ) -> bool:  # fmt: skip
        """Fill up all who are ready, the emptiest first, but for no longer than a beat; whether there is room
        left for what there is."""

        def room(member: Member) -> int:
            return at_once(terms, rows=member.rows, seconds=seconds) - len(member.jobs)

        end = time.monotonic() + BEAT
        while jobs.more and (members := [member for member in crew.ready if room(member) > 0]):
            self._check()
            if time.monotonic() > end:
                return True
            member = min(members, key=lambda member: len(member.jobs))
            crew.give(member, jobs.next(), seconds=seconds, drawn=drawn)
        return False


class _Jobs:
    """What is to be handed out: what lost workers have left, then pictures, of which one is read ahead."""

    def __init__(self, pictures: Iterator[Picture], terms: Terms) -> None:
        self._pictures, self._terms = pictures, terms
        self._left: deque[Job] = deque()
        self._read()

    def __len__(self) -> int:
        """At the most; there may be fewer."""
        return len(self._left) + length_hint(self._pictures)

    @property
    def more(self) -> bool:
        """Whether there are any."""
        return bool(self._left)

    def next(self) -> Job:
        job = self._left.popleft()
        if not self._left:
            self._read()
        return job

    def again(self, jobs: Iterable[Job]) -> None:
        """They are to be done by another."""
        self._left.extendleft(jobs)

    def _read(self) -> None:
        """A picture gets its seed here, once: whoever certifies it after a loss draws the same noise."""
        for picture in self._pictures:
            seeded = self._terms if self._terms.seed is not None else replace(self._terms, seed=drawn_seed())
            self._left.append(Job(picture, seeded))
            return


class _Progress:
    """What has been told of the copies counted. It only grows: those of a lost worker are counted again."""

    def __init__(self, tell: Callable[[int], Any] | None) -> None:
        self._tell, self._done, self._told = tell, 0, 0

    def done(self, certificate: Certificate) -> None:
        self._done += certificate.copies
        self.show(0)

    def show(self, under_way: int) -> None:
        """There are so many beside those that are done."""
        new = self._done + under_way - self._told
        if self._tell is not None and new > 0:
            self._told += new
            self._tell(new)


def _needs(nodes: list[dict[str, Any]], *, gpus: int | None, cores: int | None) -> Needs:
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if gpus is None:  # whatever there is
        gpus = int(any(node.get("GPU", 0) >= 1 for node in alive))
    if cores is None:
        cores = 1 if gpus else min((int(node["CPU"]) for node in alive if node.get("CPU", 0) >= 1), default=1)
    return Needs(cores, gpus)


def _gpus(device: str) -> int | None:
    """How many GPUs a worker takes; None for auto."""
    kind, _, numbers = device.partition(":")
    if device in (*ON_CPU, "auto"):
        return None if device == "auto" else 0
    count = numbers.count(",") + 1
    if kind not in ON_GPU or numbers != ",".join(map(str, range(count))):
        raise FvitError(
            f"device '{device}': on a cluster use {', '.join(ON_CPU)}, auto, or tensorrt:0, ort-tensorrt:0 "
            "or cuda:0 for a GPU a worker, cuda:0,1 for two; a worker counts those that it is given from 0 on"
        )
    return count


def _write(files: Drawn, png: Path) -> None:
    from fvit.runtime.pictures import written_whole

    for name, data in files.items():
        file = png if name == PNG else png.parent / name
        file.parent.mkdir(exist_ok=True)
        with written_whole(file) as part:
            part.write_bytes(data)
