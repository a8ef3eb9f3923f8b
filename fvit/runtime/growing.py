"""The copies of one picture, look after look, until they suffice for what is asked."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from threading import Lock
from typing import Generic, TypeVar

from fvit.certificates.tally import Tally
from fvit.runtime.queue import Counted, Queue, Stretch

Answer = TypeVar("Answer")


class Growing(Future[Answer], Generic[Answer]):
    """An answer that rests on as many copies as it takes. Cancelling it frees its rows.

    whole: all the copies that it may take, and the tally that they end in. looks: the numbers of copies at
    which the tally is shown to `judge`, ending with all; judge gives the answer, or None to go on, and is
    called in one of the threads of `claims`. Where it looks depends on nothing else: the copies after a look
    are queued as spare stretches, up to `ahead` copies, so that they may be there when they are wanted.
    """

    def __init__(
        self,
        queue: Queue,
        claims: Executor,
        whole: Stretch,
        *,
        looks: Sequence[int],
        judge: Callable[[Growing[Answer]], Answer | None],
        ahead: int,
    ) -> None:
        super().__init__()
        self.tally: Tally = whole.tally
        self.started: float | None = None
        self._queue, self._claims, self._judge, self._ahead = queue, claims, judge, ahead
        # Copies beyond a look may never be wanted: they are told of when they are looked at.
        self._tell = whole.on_copies if len(looks) > 1 else _nobody
        told = _nobody if len(looks) > 1 else whole.on_copies
        first = whole.copies.start
        edges = [first, *(first + look for look in looks)]
        self._planned = deque(
            replace(whole, copies=range(start, stop), tally=whole.tally.empty(), on_copies=told)
            for start, stop in itertools.pairwise(edges)
        )
        self._queued: deque[Counted] = deque()
        self._age: int | None = None  # of its first stretch, and so of all
        self._once = Lock()
        self._settled = False
        self._go_on()
        self.add_done_callback(_left)

    def fail(self, error: Exception) -> None:
        """Give it up with a reason, where it has no answer yet."""
        self._settle(lambda: self.set_exception(error))

    def _go_on(self) -> None:
        """Want the next stretch, and queue what may follow it."""
        if not self._queued:
            self._queued.append(self._queue.submit(self._planned.popleft(), age=self._age))
        self._age = self._queued[0].age
        wanted = self._queued[0]
        self._queue.want(wanted)
        beyond = sum(len(counted.stretch.copies) for counted in self._queued) - len(wanted.stretch.copies)
        while self._planned and beyond < self._ahead:
            beyond += len(self._planned[0].copies)
            self._queued.append(self._queue.submit(self._planned.popleft(), spare=True, age=self._age))
        wanted.add_done_callback(self._counted)
        if self.done():  # cancelled meanwhile
            self._drop()

    def _counted(self, counted: Future[Tally]) -> None:
        assert isinstance(counted, Counted)
        try:
            self._claims.submit(self._look, counted)
        except RuntimeError:  # its threads have ended, with the model or the interpreter
            self._look(counted)

    def _look(self, counted: Counted) -> None:
        try:
            if counted.cancelled():
                self.cancel()
            if self.done():
                return
            self.tally.merge(counted.result())
            self.started = self.started or counted.started
            if self._queued:  # not given up meanwhile
                self._queued.popleft()
            self._tell(len(counted.stretch.copies))
            answer = self._judge(self)
            if answer is None:
                self._go_on()
            else:
                self._settle(lambda: self.set_result(answer))
        except Exception as error:
            self.fail(error)

    def _settle(self, tell: Callable[[], None]) -> None:
        """Answered, failed or cancelled: the first of them decides."""
        with self._once:
            if self._settled:
                return
            self._settled = True
        if self.set_running_or_notify_cancel():
            tell()

    def _drop(self) -> None:
        """Nobody wants the rest."""
        if self.cancelled():
            self._settle(lambda: None)
        for counted in list(self._queued):
            counted.cancel()
        self._queued.clear()


def _left(growing: Future[Answer]) -> None:
    assert isinstance(growing, Growing)
    growing._drop()


def _nobody(copies: int) -> None:
    """Nobody is told."""
