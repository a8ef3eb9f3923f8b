"""FaithfulViT: a bundle on a device, ready to predict and to certify."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.radii import Aggregate, leads_clearly
from fvit.certificates.record import Certificate, Decision, Terms, attention_claim, class_claim, decide
from fvit.certificates.tally import Tally
from fvit.errors import FvitError
from fvit.runtime.bundle import Bundle
from fvit.runtime.host import CopyCounter, DenoisedClassifier, Section
from fvit.runtime.images import ImageLike, Picture, read_image


@dataclass(frozen=True, eq=False)
class Prediction:
    """index and label of the smoothed class, None where the copies do not decide (abstention);
    counts [C] over the copies; attention [rows, columns]: the mean attribution, summing to 1."""

    index: int | None
    label: str | None
    counts: NDArray[np.int64]
    attention: NDArray[np.float64]


class FaithfulViT:
    """A vision transformer smoothed by denoised diffusion. Safe to share between threads.

    device: where the pipeline runs, as records name it. batch: copies that one run of the engine takes.
    smoother: makes what counts copies in batches of a given size.
    """

    def __init__(
        self,
        bundle: Bundle,
        pipeline: DenoisedClassifier,
        *,
        device: str,
        batch: int,
        smoother: Callable[[int], CopyCounter],
    ) -> None:
        self.bundle, self.pipeline, self.batch = bundle, pipeline, batch
        self.passed_over: tuple[str, ...] = ()
        manifest = bundle.manifest
        if (pipeline.classes, pipeline.tokens) != (len(manifest.labels), manifest.tokens):
            raise FvitError(
                f"{bundle.folder}: graph and manifest disagree on classes or tokens: export it again"
            )
        self.engine = {"name": pipeline.engine, "device": device, "precision": manifest.precision}
        # A device's smoother holds its memory: one of another size is kept, not made for every call.
        self._smoother_of = lru_cache(maxsize=4)(smoother)
        self._smoother = self._smoother_of(batch)

    def predict(
        self, image: ImageLike, *, sigma: float = 0.25, n: int = 32, alpha: float = 1e-3, seed: int = 0
    ) -> Prediction:
        """The smoothed class, or abstention where a two-sided binomial test at alpha does not tell
        the two leading classes apart ([3], PREDICT), and the smoothed attention map. No radius.

        Raises FvitError for an unreadable image, σ outside the schedule, n < 1 or alpha outside (0,1).
        """
        if n < 1 or not 0 < alpha < 1:
            raise FvitError(f"n = {n}, alpha = {alpha:g}: predict needs n ≥ 1 and alpha in (0, 1)")
        self.pipeline.schedule.timestep(sigma)
        picture = self.read(image)
        tally = self._tally(sizes=())
        section = Section(picture.pixels, range(n), tally)
        smoother = self._smoother if n >= self.batch else self._smoother_of(n)
        for _ in smoother.run([section], sigma=sigma, seed=seed):
            pass
        leader, runner_up = np.argsort(-tally.counts, kind="stable")[:2]
        clear = leads_clearly(int(tally.counts[leader]), int(tally.counts[runner_up]), alpha=alpha)
        return Prediction(
            index=int(leader) if clear else None,
            label=self.bundle.manifest.labels[leader] if clear else None,
            counts=tally.counts,
            attention=(tally.sums / tally.copies).reshape(self.bundle.manifest.grid),
        )

    def certify(
        self,
        image: ImageLike,
        *,
        sigma: float = 0.25,
        n0: int = 100,
        n: int = 1000,
        alpha: float = 1e-3,
        k: int | Sequence[int] = 10,
        beta: float = 0.8,
        radius: float | None = None,
        aggregate: Aggregate = "vote",
        seed: int = 0,
    ) -> Certificate:
        """The certificate of one image: class and attention, false with probability at most alpha.

        k: one explanation size, or several from the same copies. radius: decide whether class and
        explanation hold at this ℓ2 radius, with at most n copies, and stop as soon as that is known.
        Raises FvitError for an unreadable image and for terms that cannot hold (Terms.check).
        """
        terms = Terms(
            sigma=sigma, n0=n0, n=n, alpha=alpha, k=(k,) if isinstance(k, int) else tuple(k), beta=beta,
            aggregate=aggregate, seed=seed, radius=radius, batch=self.batch,
        )  # fmt: skip
        self.check(terms)
        return next(self.certify_many([self.read(image)], terms))

    def certify_many(
        self,
        pictures: Iterable[Picture],
        terms: Terms,
        *,
        on_copies: Callable[[int], Any] = lambda copies: None,
    ) -> Iterator[Certificate]:
        """Certificates in the order of the pictures; each is yielded as soon as its last copy is
        counted, and none depends on the company it was computed in.

        on_copies is called with the number of copies counted since its last call.
        """
        run = self._estimate_many if terms.radius is None else self._decide_each
        return run(pictures, terms, on_copies)

    def _estimate_many(
        self, pictures: Iterable[Picture], terms: Terms, on_copies: Callable[[int], Any]
    ) -> Iterator[Certificate]:
        """n0 + n copies of every picture; pictures share batches."""
        waiting: list[tuple[Picture, Tally, Tally]] = []

        def sections() -> Iterator[Section]:
            for picture in pictures:
                selection, estimation = self._tally(sizes=terms.k), self._tally(sizes=terms.k)
                waiting.append((picture, selection, estimation))
                yield Section(picture.pixels, range(terms.n0), selection)
                yield Section(picture.pixels, range(terms.n0, terms.n0 + terms.n), estimation)

        started = time.perf_counter()
        run = self._smoother.run(sections(), sigma=terms.sigma, seed=terms.seed, on_copies=on_copies)
        for section in run:
            if section.tally is waiting[0][2]:
                picture, selection, estimation = waiting.pop(0)
                now = time.perf_counter()
                yield self._certificate(picture, selection, estimation, terms, seconds=now - started)
                started = now

    def _decide_each(
        self, pictures: Iterable[Picture], terms: Terms, on_copies: Callable[[int], Any]
    ) -> Iterator[Certificate]:
        """Picture by picture, growing batches until the answer is known or n is reached."""
        assert terms.radius is not None
        for picture in pictures:
            started = time.perf_counter()
            selection, estimation = self._tally(sizes=terms.k), self._tally(sizes=terms.k)
            sections = [Section(picture.pixels, range(terms.n0), selection)]
            for look in terms.checkpoints:
                fresh = range(terms.n0 + estimation.copies, terms.n0 + look)
                sections.append(Section(picture.pixels, fresh, estimation))
                for _ in self._smoother.run(
                    sections, sigma=terms.sigma, seed=terms.seed, on_copies=on_copies
                ):
                    pass
                sections = []
                decision = decide(selection, estimation, terms, radius=terms.radius)
                if decision.answer != "undecided":
                    break
            seconds = time.perf_counter() - started
            yield self._certificate(picture, selection, estimation, terms, seconds=seconds, decision=decision)

    def check(self, terms: Terms) -> None:
        """Raise FvitError where these terms cannot be met by this bundle."""
        terms.check(tokens=self.pipeline.tokens)
        self.pipeline.schedule.timestep(terms.sigma)

    def read(self, image: ImageLike) -> Picture:
        """The image at the bundle's size; raises FvitError where it cannot be read."""
        return read_image(image, size=self.pipeline.image_size)

    def _tally(self, *, sizes: tuple[int, ...]) -> Tally:
        return Tally(self.pipeline.classes, self.pipeline.tokens, sizes)

    def _certificate(
        self,
        picture: Picture,
        selection: Tally,
        estimation: Tally,
        terms: Terms,
        *,
        seconds: float,
        decision: Decision | None = None,
    ) -> Certificate:
        manifest = self.bundle.manifest
        return Certificate(
            image=picture.name,
            sha256=picture.sha256,
            terms=terms,
            copies_drawn=selection.copies + estimation.copies,
            class_=class_claim(
                selection, estimation, terms, labels=manifest.labels, pixels=picture.pixels.size
            ),
            attentions=tuple(
                attention_claim(selection, estimation, terms, k=k, grid=manifest.grid) for k in terms.k
            ),
            decision=decision,
            engine=self.engine,
            bundle=self.bundle.digest,
            seconds=round(seconds, 3),
        )
