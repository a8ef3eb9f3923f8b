"""One stream of full batches for everybody: stretches of copies from many callers, shared out to devices."""

from __future__ import annotations

import atexit
import heapq
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from fvit.certificates.tally import Tally
from fvit.errors import DeviceLost, FvitError
from fvit.runtime.images import Picture

CLOSED = "the model was closed: load the bundle again with fvit.load"

TURN = 64
"""Copies that an account is served before those served less come first: a short request then gets all of its
copies in one go, and requests of one length are done one after another instead of all at the end."""

CREDIT = 1024
"""Copies by which a new account counts as served less than all that are open: it comes first until it has
had so many, and then in turn with them, however many they had before."""

OLDEST = 4
"""One of so many rows of a batch belongs to the oldest stretch, so that none starves."""

NEW = 3
"""One of so many rows belongs to accounts that have not had their first turn, and more where more than one in
so many is new. What they do not want is saved for them, up to a turn: a short request now and then is
answered at once, and one after the other without a pause leaves most rows to the long ones."""

LATE = 10.0
"""Seconds of work that the rate of late is taken over."""


class Account:
    """Whose copies they are: stretches of one account are served by age, accounts by what they have had.

    served: so many, or what it is credited with. copies: so many.
    """

    served = 0
    copies = 0

    @property
    def new(self) -> bool:
        """Whether it has not had its first turn."""
        return self.copies < TURN


@dataclass(frozen=True, eq=False)
class Stretch:
    """A run of copies of one picture that is counted into one tally.

    key: of the noise (noise.philox_key). on_copies: called with the number of copies counted since its last
    call, in the devices' threads; what it raises fails the stretch.
    """

    picture: Picture
    copies: range
    sigma: float
    key: int
    tally: Tally
    account: Account = field(default_factory=Account)
    on_copies: Callable[[int], Any] = lambda copies: None


Part: TypeAlias = "tuple[Stretch, range]"
Batch: TypeAlias = "list[Part]"


class Counter(Protocol):
    """One device, which draws copies, runs the networks on them and counts. One caller at a time."""

    @property
    def rows(self) -> int:
        """The most copies that a batch may have now; fewer where memory ran out."""

    @property
    def grain(self) -> int:
        """Copies are computed in multiples of this, whether anybody wants them or not."""

    @property
    def ahead(self) -> int:
        """Batches that may be begun before the oldest one is finished."""

    def begin(self, batch: Batch) -> Callable[[], Sequence[Tally | FvitError]]:
        """Draw and start a batch; the call that is returned waits for it.

        It gives one new tally for each part, in order (docs/method.md, section 9), or what is wrong with that
        part. Both raise OutOfMemory where fewer rows at once do not help, DeviceLost where the device is gone
        for good, FvitError where this batch failed.
        """

    def close(self) -> None:
        """Release what the device holds."""


class Counted(Future[Tally]):
    """The tally of a stretch, once every copy is counted. Cancelling frees its rows from the next batch on.

    started: when its first rows were taken, by time.perf_counter.
    """

    def __init__(self, stretch: Stretch, *, age: int, spare: bool) -> None:
        super().__init__()
        self.stretch, self.age, self.spare = stretch, age, spare
        self.started: float | None = None
        self.todo = deque([stretch.copies] if stretch.copies else [])
        self.uncounted = len(stretch.copies)
        self.settled = False

    @property
    def turn(self) -> tuple[int, int]:
        """Those with the smallest are served first."""
        return self.stretch.account.served // TURN, self.age


@dataclass(frozen=True)
class Statistics:
    """What a queue has done, and where it stands.

    copies: counted so far. batches: taken so far, with room for so many rows. waiting: rows that are
    wanted and not yet taken by a device. devices: how many are left. rate: copies a second while any device
    was at work, over the last LATE seconds of that; None before the first batch.
    """

    copies: int
    batches: int
    room: int
    waiting: int
    devices: int
    rate: float | None


_Taken: TypeAlias = "list[tuple[Counted, range]]"


class Queue:
    """Gives every device full batches of whatever stretches are open.

    The account that has been served least comes first; new accounts and the oldest stretch have a share of
    every batch: a short request overtakes long ones, and no long one starves. A batch that is not full starts
    at once where its device has nothing else to do. A batch that fails fails its own stretches alone; a
    device that fails for good leaves, and its copies go to the others.
    """

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._desk = _Desk(len(counters))
        self._threads = [
            threading.Thread(target=_serve, args=(self._desk, counter), name=f"fvit-device-{i}", daemon=True)
            for i, counter in enumerate(counters)
        ]
        _LIVE[self._desk] = self._threads
        weakref.finalize(self, self._desk.end, cancel=True).atexit = False  # nobody waits for what is dropped
        for thread in self._threads:
            thread.start()

    @property
    def mine(self) -> bool:
        """Whether this is the process whose threads serve it, and no fork of it."""
        return self._desk.mine

    @property
    def waiting(self) -> int:
        """How many rows are wanted and not yet taken by a device: what a new stretch may have to wait for."""
        return self._desk.waiting

    @property
    def statistics(self) -> Statistics:
        """What has been done so far, and what is left to do."""
        return self._desk.statistics

    def submit(self, stretch: Stretch, *, spare: bool = False, age: int | None = None) -> Counted:
        """Queue a stretch; its tally is complete when the future is.

        spare: until it is wanted, it only gets what nobody else does: rows that are computed anyway
        (Counter.grain), devices that are idle. age: of the stretch that it goes on with.
        Raises FvitError after close, in a forked child, and where no device is left.
        """
        return self._desk.submit(stretch, spare=spare, age=age)

    def want(self, counted: Counted) -> None:
        """A spare stretch is wanted from now on."""
        self._desk.want(counted)

    def close(self, *, cancel: bool = False) -> None:
        """Finish what is open, or cancel it, then end every thread and release the devices."""
        self._desk.end(cancel=cancel)
        if self._desk.mine:
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join()
            _LIVE.pop(self._desk, None)


class _Desk:
    """What the devices' threads share. It knows nothing of the Queue, so that a dropped one can end."""

    def __init__(self, devices: int) -> None:
        self.waiting = 0
        self._devices = devices
        self._open: dict[Counted, None] = {}
        self._ages = itertools.count()
        # What the account that was served least has had: it never falls, or newcomers would undercut each
        # other.
        self._least = 0
        self._owed = 0.0  # rows of the oldest's share that were less than a whole one
        self._saved = 0.0  # rows of the new accounts' share that none of them wanted, up to a turn
        # A lock itself, not the condition around it, is what is entered: an interrupt finds no gap in it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._refused: str | None = None
        self._ending = False
        self._process = os.getpid()
        self._copies = self._batches = self._room = self._out = 0
        self._busy, self._then = 0.0, 0.0
        self._late = deque([(0.0, 0)])

    @property
    def statistics(self) -> Statistics:
        self._check_mine()
        with self._lock:
            seconds, copies = self._late[0]
            rate = (self._copies - copies) / (self._busy - seconds) if self._copies > copies else None
            return Statistics(
                self._copies, self._batches, self._room, self.waiting, devices=self._devices, rate=rate
            )

    @property
    def mine(self) -> bool:
        """Whether this is the process whose threads serve it."""
        return os.getpid() == self._process

    def _check_mine(self) -> None:
        if not self.mine:
            raise FvitError(
                "this model was loaded before the process was forked, and its threads did not come along: "
                "call fvit.load in the child"
            )

    def submit(self, stretch: Stretch, *, spare: bool, age: int | None) -> Counted:
        self._check_mine()
        with self._lock:
            if self._refused is not None:
                raise FvitError(self._refused)
            counted = Counted(stretch, age=next(self._ages) if age is None else age, spare=spare)
            stretch.account.served = max(stretch.account.served, self._least - CREDIT)
            self._open[counted] = None
            self._add(counted, len(stretch.copies))
            empty = not stretch.copies
        if empty:
            self._settle(counted, None)
        else:
            counted.add_done_callback(self._left)
        return counted

    def want(self, counted: Counted) -> None:
        self._check_mine()
        with self._lock:
            if counted.spare and not counted.settled:
                counted.spare = False
                self._add(counted, sum(map(len, counted.todo)))

    def end(self, *, cancel: bool) -> None:
        """Take nothing more; devices leave when nothing is open."""
        if not self.mine:
            return
        with self._lock:
            self._refused = self._refused or CLOSED
            self._ending = True
            dropped = [counted for counted in self._open if cancel or counted.spare]
            self._changed.notify_all()
        for counted in dropped:
            counted.cancel()

    def take(self, counter: Counter, *, busy: bool) -> _Taken:
        """The rows of a device's next batch; empty where it has to finish one first, or to leave.

        A device that is busy waits for a full batch instead of starting a small one behind the other.
        """
        with self._lock:
            while True:
                rows = counter.rows
                if self.waiting >= rows:
                    break
                if busy:
                    return []
                if self.waiting or any(counted.todo for counted in self._open):
                    break
                if self._ending and not self._open:
                    return []
                self._changed.wait()
            taken = self._rows(rows, grain=counter.grain)
            if taken:
                self._batches += 1
                self._room += rows
                self._at_work(1)
            return taken

    def counted(self, taken: _Taken, tallies: Sequence[Tally | FvitError]) -> None:
        """A batch is done; what is wrong with a part, or with who is told of it, is that stretch's alone."""
        complete = []
        with self._lock:
            self._at_work(-1)
            self._copies += sum(len(copies) for _, copies in taken)
            self._late.append((self._busy, self._copies))
            while len(self._late) > 2 and self._busy - self._late[1][0] > LATE:
                self._late.popleft()
            for (counted, copies), tally in zip(taken, tallies, strict=True):
                if isinstance(tally, Tally) and not counted.settled:
                    counted.stretch.tally.merge(tally)
                    counted.uncounted -= len(copies)
                    if counted.uncounted == 0:
                        complete.append(counted)
        for (counted, copies), tally in zip(taken, tallies, strict=True):
            if isinstance(tally, FvitError):
                self._settle(counted, tally)
                continue
            try:
                counted.stretch.on_copies(len(copies))
            except Exception as error:
                self._settle(counted, error)
        for counted in complete:
            self._settle(counted, None)

    def failed(self, taken: _Taken, error: Exception) -> None:
        """A batch failed: so have its stretches."""
        with self._lock:
            self._at_work(-1)
        for counted in dict(taken):
            self._settle(counted, error)

    def returned(self, taken: _Taken, *, batches: int) -> None:
        """A device left without having counted these rows: they are to be taken again."""
        with self._lock:
            self._at_work(-batches)
            for counted, copies in reversed(taken):
                if not counted.settled:
                    counted.todo.appendleft(copies)
                    self._add(counted, len(copies))

    def left(self, error: Exception | None) -> None:
        """A device's thread ends; with an error where the device failed for good."""
        with self._lock:
            self._devices -= 1
            if self._devices:
                return
            reason = error or FvitError("the last device's thread ended")
            self._refused = self._refused or f"no device is left: {reason}"
            left = list(self._open)
        for counted in left:
            self._settle(counted, reason)

    def _at_work(self, batches: int) -> None:
        """So many more batches are under way: time counts while any is."""
        now = time.perf_counter()
        if self._out:
            self._busy += now - self._then
        self._then = now
        self._out += batches

    def _rows(self, rows: int, *, grain: int) -> _Taken:
        taken: _Taken = []
        ready = [counted for counted in self._open if counted.todo]
        wanted = [counted for counted in ready if not counted.spare]
        room = rows
        if wanted:
            self._least = max(self._least, min(each.stretch.account.served for each in wanted))
            oldest = min(wanted, key=lambda counted: counted.age)
            self._owed += rows / OLDEST
            room -= self._give(oldest, int(self._owed), taken)
            self._owed %= 1
            new = [counted for counted in wanted if counted.stretch.account.new]
            others = [counted for counted in wanted if not counted.stretch.account.new]
            if others:
                newcomers, accounts = (len({each.stretch.account for each in g}) for g in (new, wanted))
                self._saved = min(self._saved, TURN) + rows * max(1 / NEW, newcomers / accounts)
                given = self._in_turn(new, min(room, int(self._saved + 1e-9)), taken)  # thirds add up
                self._saved -= given
                room -= given
                room -= self._in_turn(others, room, taken)
            room -= self._in_turn(new, room, taken)
            room = min(room, -(rows - room) % grain)
        # What is computed anyway, or by nobody else, may as well serve somebody.
        for counted in ready:
            if counted.spare:
                room -= self._give(counted, room, taken)
        return taken

    def _in_turn(self, group: list[Counted], room: int, taken: _Taken) -> int:
        """Up to `room` rows of those that come first in a group; how many there were."""
        given = 0
        for counted in heapq.nsmallest(room, group, key=lambda counted: counted.turn):
            given += self._give(counted, room - given, taken)
        return given

    def _give(self, counted: Counted, room: int, taken: _Taken) -> int:
        """Up to `room` rows of a stretch; how many there were."""
        given = 0
        while counted.todo and given < room:
            copies = counted.todo.popleft()
            part, rest = copies[: room - given], copies[room - given :]
            if rest:
                counted.todo.appendleft(rest)
            before = taken[-1] if taken else None
            if before is not None and before[0] is counted and before[1].stop == part.start:
                taken[-1] = (counted, range(before[1].start, part.stop))
            else:
                taken.append((counted, part))
            given += len(part)
        if given:
            counted.started = counted.started or time.perf_counter()
            counted.stretch.account.served += given
            counted.stretch.account.copies += given
            self.waiting -= 0 if counted.spare else given
        return given

    def _add(self, counted: Counted, rows: int) -> None:
        if not counted.spare:
            self.waiting += rows
            self._changed.notify_all()

    def _left(self, future: Future[Tally]) -> None:
        if future.cancelled() and isinstance(future, Counted):
            self._settle(future, None)

    def _settle(self, counted: Counted, error: Exception | None) -> None:
        """Counted, failed or cancelled: the first of them decides."""
        if not self.mine:
            return
        with self._lock:
            if counted.settled:
                return
            counted.settled = True
            del self._open[counted]
            if not counted.spare:
                self.waiting -= sum(map(len, counted.todo))
            counted.todo.clear()
            self._changed.notify_all()
        if counted.set_running_or_notify_cancel():
            if error is None:
                counted.set_result(counted.stretch.tally)
            else:
                counted.set_exception(_told(error))


_Begun: TypeAlias = "deque[tuple[_Taken, Callable[[], Sequence[Tally | FvitError]]]]"


def _serve(desk: _Desk, counter: Counter) -> None:
    """A device's thread, until the desk ends or the device is lost."""
    begun: _Begun = deque()
    error: Exception | None = None
    try:
        while _step(desk, counter, begun):
            pass
    except DeviceLost as reason:
        error = reason
    finally:
        begun.clear()
        desk.left(error)
        counter.close()


def _step(desk: _Desk, counter: Counter, begun: _Begun) -> bool:
    """Begin a batch or finish one; False where there is nothing left to do. It leaves nothing on the stack of
    a device that waits, which would keep what it counted, and its callers, from being freed."""
    taken = desk.take(counter, busy=bool(begun)) if len(begun) <= counter.ahead else []
    if not taken and not begun:
        return False
    try:
        if taken:
            batch = [(counted.stretch, copies) for counted, copies in taken]
            begun.append((taken, counter.begin(batch)))
        else:
            taken, finish = begun.popleft()
            desk.counted(taken, finish())
    except BaseException as reason:
        if isinstance(reason, Exception) and not isinstance(reason, DeviceLost):
            desk.failed(taken, reason)  # whatever an engine raises is the batch's, not the queue's
        else:
            desk.returned([*taken, *(row for each, _ in begun for row in each)], batches=1 + len(begun))
            raise
    return True


def _told(error: Exception) -> FvitError:
    """An error for one caller: a raised exception gathers the traceback of whoever raises it."""
    if isinstance(error, FvitError):
        told: FvitError = type(error)(*error.args)
    else:
        told = FvitError(f"the engine failed: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told


_LIVE: weakref.WeakKeyDictionary[_Desk, list[threading.Thread]] = weakref.WeakKeyDictionary()
"""Threads must not run into the interpreter's end."""


@atexit.register
def _end_all() -> None:
    for desk, threads in list(_LIVE.items()):
        desk.end(cancel=True)
        if desk.mine:
            for thread in threads:
                thread.join(timeout=10)
