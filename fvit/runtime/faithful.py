"""FaithfulViT: a bundle on its devices, ready to predict and to certify."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Event, Lock
from types import TracebackType
from typing import Any, NoReturn, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict, Unpack

from fvit.certificates.decisions import decide
from fvit.certificates.radii import Aggregate, leads_clearly
from fvit.certificates.record import Certificate
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.runtime.bundle import Bundle, Manifest
from fvit.runtime.growing import Growing
from fvit.runtime.host import DenoisedClassifier
from fvit.runtime.images import ImageLike, Picture, read_image
from fvit.runtime.noise import philox_key, thresholds
from fvit.runtime.queue import CLOSED, Account, Counter, Queue, Stretch
from fvit.runtime.schedule import Schedule

MOST_REFINED = 100_000
"""Copies of one image that a refinement ends at, unless told."""

Answer = TypeVar("Answer")

MOST_OPEN = 64
"""Images whose copies are queued at once, at the most."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """index and label of the smoothed class, None where the copies do not decide (abstention);
    counts [C] over the copies; attention [rows, columns]: the mean attribution, summing to 1; seed: that the
    noise was drawn from."""

    index: int | None
    label: str | None
    counts: NDArray[np.int64]
    attention: NDArray[np.float64]
    seed: int


class Asked(TypedDict, total=False):
    """What may be asked of certify, with its defaults."""

    sigma: float
    n: int
    alpha: float
    k: int | Sequence[int]
    beta: float
    radius: float | None
    aggregate: Aggregate
    seed: int | None


class TermsAsked(Asked, total=False):
    """What may be asked of certify and refine."""

    refining: bool


class PredictAsked(TypedDict, total=False):
    """What may be asked of predict, with its defaults."""

    sigma: float
    n: int
    alpha: float
    seed: int | None


class RefineAsked(TypedDict, total=False):
    """What may be asked of refine beside its limits, with its defaults."""

    sigma: float
    alpha: float
    k: int | Sequence[int]
    beta: float
    aggregate: Aggregate
    seed: int | None


class FaithfulViT:
    """A vision transformer smoothed by denoised diffusion, on its devices, until it is closed.

    Callers from any thread share batches. device: where it runs, as records name it. counters: one for each
    device, all of them of this pipeline.
    """

    def __init__(
        self, bundle: Bundle, pipeline: DenoisedClassifier, counters: Sequence[Counter], *, device: str
    ) -> None:
        self.bundle, self.pipeline = bundle, pipeline
        self.passed_over: tuple[str, ...] = ()
        self.engine = {"name": pipeline.engine, "device": device, "precision": pipeline.precision}
        self.rows = sum(counter.rows for counter in counters)
        self.queue = Queue(counters)
        self._claims = ThreadPoolExecutor(1, thread_name_prefix="fvit-claims")
        self._growing: WeakSet[Growing[Any]] = WeakSet()
        self._lock = Lock()
        self._closed = False

    def __enter__(self) -> FaithfulViT:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=error is not None)

    def close(self, *, cancel: bool = False) -> None:
        """Finish what is open, or give it up, then end the threads and release the devices.

        What is given up fails as what comes later does. In a forked child there is nothing to close.
        """
        if not self.queue.mine:
            return
        with self._lock:
            self._closed = True
            under_way = list(self._growing)
        for growing in under_way:
            if cancel:
                growing.fail(FvitError(CLOSED))
            wait([growing])
        self.queue.close(cancel=cancel)
        self._claims.shutdown()
        self.pipeline.close()

    def __reduce__(self) -> NoReturn:
        raise FvitError(
            "a FaithfulViT holds threads and devices and cannot be pickled: give a worker the bundle's "
            "folder, and call fvit.load there"
        )

    def predict(
        self,
        image: ImageLike | Picture,
        *,
        sigma: float = 0.25,
        n: int = 32,
        alpha: float = 1e-3,
        seed: int | None = None,
    ) -> Prediction:
        """The smoothed class, or abstention where a two-sided binomial test at alpha does not tell the two
        leading classes apart (PREDICT of Cohen et al. 2019), and the smoothed attention map. No radius.

        seed: of the noise; from the operating system's entropy unless told. Raises FvitError for an image
        that cannot be read, σ outside the schedule, and n and alpha that cannot decide.
        """
        return _answer(self.predicting(self.read(image), sigma=sigma, n=n, alpha=alpha, seed=seed))

    async def predict_async(self, image: ImageLike | Picture, **asked: Unpack[PredictAsked]) -> Prediction:
        """predict, awaitable. Cancelling frees its copies."""
        growing = await _begun(lambda: self.predicting(self.read(image), **asked))
        return await asyncio.wrap_future(growing)

    def certify(
        self,
        image: ImageLike | Picture,
        *,
        sigma: float = 0.25,
        n: int = 1000,
        alpha: float = 1e-3,
        k: int | Sequence[int] = 10,
        beta: float = 0.8,
        radius: float | None = None,
        aggregate: Aggregate = "vote",
        seed: int | None = None,
    ) -> Certificate:
        """The certificate of one image: class and attention, false with probability at most alpha.

        k: one explanation size, or several from the same copies. radius: decide whether class and
        explanation hold at this ℓ2 radius, with at most n copies, and stop as soon as that is known. seed: of
        the noise; from the operating system's entropy, when the image has been read, unless told: a seed that
        is known before the image voids the guarantee (docs/method.md, section 3).
        Raises FvitError for an image that cannot be read and for terms that cannot hold (Terms.check).
        """
        terms = self.terms(
            sigma=sigma, n=n, alpha=alpha, k=k, beta=beta, radius=radius, aggregate=aggregate, seed=seed
        )
        return _answer(self.certifying(self.read(image), terms))

    async def certify_async(self, image: ImageLike | Picture, **asked: Unpack[Asked]) -> Certificate:
        """certify, awaitable. Cancelling frees its copies."""
        growing = await _begun(lambda: self.certifying(self.read(image), self.terms(**asked)))
        return await asyncio.wrap_future(growing)

    def refine(
        self,
        image: ImageLike | Picture,
        *,
        sigma: float = 0.25,
        n: int = MOST_REFINED,
        seconds: float | None = None,
        alpha: float = 1e-3,
        k: int | Sequence[int] = 10,
        beta: float = 0.8,
        aggregate: Aggregate = "vote",
        seed: int | None = None,
    ) -> Iterator[Certificate]:
        """Certificates that grow with the copies, until n copies or some seconds after the first.

        In each something is larger than in all before it: the class's radius, that of an explanation, or the
        radii of a certified map in all; but the last rests on every copy. All of them are true at once with
        probability 1 − alpha. Leaving the iteration frees its copies. Arguments and errors otherwise as
        certify.
        """
        terms = self.terms(
            sigma=sigma, n=n, alpha=alpha, k=k, beta=beta, aggregate=aggregate, seed=seed, refining=True
        )
        shown: SimpleQueue[Certificate | None] = SimpleQueue()
        grown = _Grown(shown.put)
        growing = self.certifying(self.read(image), terms, seconds=seconds, on_look=grown)
        growing.add_done_callback(lambda _: shown.put(None))

        def shown_ones() -> Iterator[Certificate]:
            try:
                while (certificate := shown.get()) is not None:
                    yield certificate
                if growing.result() is not grown.last:
                    yield growing.result()
            finally:
                growing.cancel()

        return shown_ones()

    async def refine_async(
        self,
        image: ImageLike | Picture,
        *,
        n: int = MOST_REFINED,
        seconds: float | None = None,
        **asked: Unpack[RefineAsked],
    ) -> AsyncIterator[Certificate]:
        """refine, as an asynchronous iterator. Leaving it, by aclose or cancellation, frees its copies."""
        loop = asyncio.get_running_loop()
        shown: asyncio.Queue[Certificate | None] = asyncio.Queue()

        def show(certificate: Certificate | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(shown.put_nowait, certificate)

        grown = _Grown(show)

        def begin() -> Growing[Certificate]:
            terms = self.terms(n=n, refining=True, **asked)
            return self.certifying(self.read(image), terms, seconds=seconds, on_look=grown)

        growing = await _begun(begin)
        growing.add_done_callback(lambda _: show(None))
        try:
            while (certificate := await shown.get()) is not None:
                yield certificate
            if growing.result() is not grown.last:
                yield growing.result()
        finally:
            growing.cancel()

    def certify_many(
        self,
        pictures: Iterable[Picture],
        terms: Terms,
        *,
        seconds: float | None = None,
        on_copies: Callable[[int], Any] = lambda copies: None,
    ) -> Iterator[Certificate]:
        """Certificates in the order of the pictures, which are certified several at a time.

        None depends on the company it was computed in. Where the terms have no seed, each picture gets its
        own when it is there. seconds: with terms that refine, how long each may take. on_copies is called
        with the number of copies counted since its last call, in other threads.
        """
        account = Account()
        most = at_once(terms, rows=self.rows, seconds=seconds)
        growing: deque[Growing[Certificate]] = deque()
        try:
            for picture in pictures:
                growing.append(
                    self.certifying(picture, terms, seconds=seconds, account=account, on_copies=on_copies)
                )
                while len(growing) >= most or (growing and growing[0].done()):
                    growing[0].result()  # what is waited for is cancelled too, where the wait is given up
                    yield growing.popleft().result()
            while growing:
                growing[0].result()
                yield growing.popleft().result()
        finally:
            for left in growing:
                left.cancel()

    def terms(self, **asked: Unpack[TermsAsked]) -> Terms:
        """terms_of this bundle."""
        return terms_of(self.bundle.manifest, **asked)

    def read(self, image: ImageLike | Picture) -> Picture:
        """The image at the bundle's size, a Picture as it is; raises FvitError where it cannot be read, or
        is a Picture of another size."""
        size = self.pipeline.image_size
        if not isinstance(image, Picture):
            return read_image(image, size=size)
        if image.pixels.shape[1:] != size:
            raise FvitError(f"the picture has {image.pixels.shape[1:]} pixels, this bundle takes {size}")
        return image

    def tallied(self, picture: Picture, terms: Terms, *, copies: int) -> Tally:
        """The first `copies` copies of a picture, counted on these terms, which have a seed. Raises FvitError
        where an engine fails."""
        return _answer(self.queue.submit(self._stretch(picture, terms, copies=copies)))

    def recount(self, picture: Picture, terms: Terms, *, copies: int) -> Certificate:
        """What the first `copies` copies of a picture certify on these terms: a record's claims, drawn again
        where it is of this bundle. Raises FvitError where an engine fails."""
        started = time.perf_counter()
        tally = self.tallied(picture, terms, copies=copies)
        return self._certificate(picture, tally, terms, seconds=time.perf_counter() - started)

    def predicting(
        self,
        picture: Picture,
        *,
        sigma: float = 0.25,
        n: int = 32,
        alpha: float = 1e-3,
        seed: int | None = None,
    ) -> Growing[Prediction]:
        """A prediction under way, as predict has it. What cannot be asked raises here, what goes wrong
        later is the future's; cancelling it frees its copies."""
        seed = drawn_seed() if seed is None else seed
        terms = Terms.of(
            sigma=sigma, n=n, alpha=alpha, k=(), beta=1.0, aggregate="vote", seed=seed,
            size=self.pipeline.image_size,
        )  # fmt: skip
        _check_level(self.pipeline.schedule, terms.sigma)
        terms.check_predicts()
        sure = terms.alpha - terms.slack
        manifest = self.bundle.manifest

        def judge(growing: Growing[Prediction]) -> Prediction:
            counts = growing.tally.counts
            leader, runner_up = np.argsort(-counts, kind="stable")[:2]
            clear = leads_clearly(int(counts[leader]), int(counts[runner_up]), alpha=sure)
            return Prediction(
                index=int(leader) if clear else None,
                label=manifest.labels[leader] if clear else None,
                counts=counts,
                attention=growing.tally.mean.reshape(manifest.grid),
                seed=seed,
            )

        return self._grow(picture, terms, judge)

    def certifying(
        self,
        picture: Picture,
        terms: Terms,
        *,
        seconds: float | None = None,
        account: Account | None = None,
        on_look: Callable[[Certificate], Any] | None = None,
        on_copies: Callable[[int], Any] = lambda copies: None,
    ) -> Growing[Certificate]:
        """A certificate under way. What cannot be asked raises here, what goes wrong later is the future's;
        cancelling it frees its copies.

        terms: from `terms`. seconds: after its first copies are taken, until it has to do with those it has.
        on_look: called with the certificate at every look, in a thread of this object's. on_copies: called
        with the number of copies counted since its last call.
        """

        if seconds is not None and not (isinstance(seconds, int | float | np.number) and seconds >= 0):
            raise FvitError(f"seconds = {seconds}: give the time that a certificate may take")
        if terms.seed is None:
            terms = replace(terms, seed=drawn_seed())

        def judge(growing: Growing[Certificate]) -> Certificate | None:
            tally, taken = growing.tally, time.perf_counter() - (growing.started or 0.0)
            last = tally.copies == terms.n or (seconds is not None and taken >= seconds)
            if terms.radius is not None and not last:
                last = decide(tally, terms).answer != "undecided"
            if not last and on_look is None:
                return None
            certificate = self._certificate(picture, tally, terms, seconds=taken)
            if on_look is not None:
                on_look(certificate)
            return certificate if last else None

        return self._grow(picture, terms, judge, account=account, on_copies=on_copies)

    def _grow(
        self,
        picture: Picture,
        terms: Terms,
        judge: Callable[[Growing[Any]], Any],
        *,
        account: Account | None = None,
        on_copies: Callable[[int], Any] = lambda copies: None,
    ) -> Growing[Any]:
        whole = replace(self._stretch(picture, terms, copies=terms.n), on_copies=on_copies)
        if account is not None:
            whole = replace(whole, account=account)
        growing = Growing(self.queue, self._claims, whole, looks=terms.looks, judge=judge, ahead=self.rows)
        with self._lock:
            if not self._closed:
                self._growing.add(growing)
                return growing
        growing.fail(FvitError(CLOSED))
        return growing

    def _stretch(self, picture: Picture, terms: Terms, *, copies: int) -> Stretch:
        if terms.seed is None:
            raise FvitError("these terms have no seed: take those of a certificate")
        return Stretch(
            picture,
            range(copies),
            sigma=terms.sigma,
            key=philox_key(picture.pixels_sha256, size=terms.size, seed=terms.seed),
            tally=Tally(
                self.pipeline.classes, self.pipeline.tokens, terms.k, betting=terms.aggregate == "mean"
            ),
        )

    def _certificate(self, picture: Picture, tally: Tally, terms: Terms, *, seconds: float) -> Certificate:
        manifest = self.bundle.manifest
        return Certificate.of(
            tally,
            terms,
            image=picture.name,
            sha256=picture.sha256,
            pixels_sha256=picture.pixels_sha256,
            labels=manifest.labels,
            grid=manifest.grid,
            engine=self.engine,
            bundle=self.bundle.digest,
            seconds=round(seconds, 3),
        )


class _Grown:
    """Shows the certificates in which something is larger than in all before; `last` is the last shown."""

    def __init__(self, show: Callable[[Certificate], Any]) -> None:
        self.last: Certificate | None = None
        self._show, self._largest = show, np.zeros(1)

    def __call__(self, certificate: Certificate) -> None:
        claims = certificate.attentions
        maps = [np.abs(claim.map_radii or ()).sum() for claim in claims]
        sizes = np.array([certificate.class_.radius_l2, *(claim.radius_l2 for claim in claims), *maps])
        if self.last is None or (sizes > self._largest).any():
            self._largest = np.maximum(sizes, self._largest)
            self.last = certificate
            self._show(certificate)


def at_once(terms: Terms, *, rows: int, seconds: float | None = None) -> int:
    """How many pictures keep devices busy that take so many rows together; one where its time is limited."""
    each = terms.n if terms.radius is None else 1
    return 1 if seconds is not None else min(MOST_OPEN, 2 + 2 * rows // each)


def terms_of(
    manifest: Manifest,
    *,
    sigma: float = 0.25,
    n: int = 1000,
    alpha: float = 1e-3,
    k: int | Sequence[int] = 10,
    beta: float = 0.8,
    radius: float | None = None,
    aggregate: Aggregate = "vote",
    seed: int | None = None,
    refining: bool = False,
) -> Terms:
    """What certify is asked, checked against a bundle; raises FvitError where that cannot meet it.

    Without a seed each picture that is certified on these terms gets its own from entropy.
    """
    terms = Terms.of(
        sigma=sigma, n=n, alpha=alpha, k=k, beta=beta, radius=radius, aggregate=aggregate,
        seed=seed, size=manifest.image_size, refining=refining,
    )  # fmt: skip
    _check_level(manifest.schedule, terms.sigma)
    terms.check(tokens=manifest.tokens)
    return terms


def _check_level(schedule: Schedule, sigma: float) -> None:
    """Raise FvitError where this denoiser or the noise has no such σ.

    The law of the noise is made ready in the caller's thread: in a device's it would hold up everybody.
    """
    schedule.timestep(sigma)
    thresholds(sigma)


def _answer(growing: Future[Answer]) -> Answer:
    """What a caller waits for, and gives up where the wait is interrupted."""
    try:
        return growing.result()
    except BaseException:
        growing.cancel()
        raise


async def _begun(begin: Callable[[], Growing[Answer]]) -> Growing[Answer]:
    """What `begin` begins, in another thread: it may read a file. Given up meanwhile, it is cancelled as soon
    as it is there."""
    given_up, begun = Event(), []

    def run() -> Growing[Answer]:
        begun.append(begin())
        if given_up.is_set():
            begun[0].cancel()
        return begun[0]

    try:
        return await asyncio.to_thread(run)
    except asyncio.CancelledError:
        given_up.set()
        for growing in begun:
            growing.cancel()
        raise


def drawn_seed() -> int:
    """A seed from the operating system's entropy: nobody knew it when the image was chosen."""
    return secrets.randbits(64)
