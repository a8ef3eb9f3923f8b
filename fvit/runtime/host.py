"""Draw -> denoise -> classify -> accumulate: from an image to counts over its noisy copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.tally import Tally
from fvit.engines.base import Engine
from fvit.errors import FvitError
from fvit.runtime import noise
from fvit.runtime.schedule import Schedule

Floats = NDArray[np.float32]


class Pipeline(Protocol):
    """The function that is smoothed: noisy copies in, one row of results for each copy out.

    A row of the results depends on the same row of the input alone (DESIGN 4.7).
    """

    image_size: tuple[int, int]
    classes: int
    tokens: int

    def __call__(self, noisy: Floats, *, sigma: float) -> tuple[Floats, Floats]:
        """noisy [B,3,H,W] in [0,1] units, noise σ included -> logits [B,C], attribution [B,N]."""


class CopyCounter(Protocol):
    """What counts noisy copies: on the host, on a device, on several."""

    @property
    def batch(self) -> int:
        """Copies that one run of the networks takes."""

    @property
    def rows(self) -> int:
        """How many of them fit at once."""

    def run(
        self,
        sections: Iterable[Section],
        *,
        sigma: float,
        seed: int,
        on_copies: Callable[[int], Any] = ...,
    ) -> Iterator[Section]:
        """Count every copy of every section; yield each section when it is complete, in order.

        on_copies is called with the number of copies counted since its last call.
        """


class DenoisedClassifier:
    """The pipeline of a bundle: its denoiser engine, then its classifier engine."""

    def __init__(
        self, denoiser: Engine, classifier: Engine, *, schedule: Schedule, image_size: tuple[int, int]
    ):
        self.image_size = image_size
        self.schedule = schedule
        self._denoiser, self._classifier = denoiser, classifier
        self.engine = classifier.name
        shapes = {tensor.name: tensor.shape for tensor in classifier.outputs}
        classes, tokens = shapes["logits"][1], shapes["attribution"][1]
        if classes is None or tokens is None:
            raise FvitError(
                "the classifier graph leaves the number of classes or tokens open: export it again"
            )
        self.classes, self.tokens = classes, tokens

    def denoise(self, noisy: Floats, *, sigma: float) -> Floats:
        """noisy [B,3,H,W] -> images [B,3,h,w] in [0,1], one step of the diffusion model."""
        scalars = {
            "sigma": np.asarray(sigma, np.float32),
            "timestep": np.asarray(self.schedule.timestep(sigma), np.float32),
        }
        return self._denoiser.run({"noisy": noisy, **scalars})["images"]

    def classify(self, images: Floats) -> tuple[Floats, Floats]:
        """images [B,3,h,w] in [0,1] -> logits [B,C], attribution [B,N]."""
        outputs = self._classifier.run({"images": images})
        return outputs["logits"], outputs["attribution"]

    def __call__(self, noisy: Floats, *, sigma: float) -> tuple[Floats, Floats]:
        return self.classify(self.denoise(noisy, sigma=sigma))


@dataclass(frozen=True, eq=False)
class Section:
    """A run of copies of one image that is counted into one tally. pixels [3,H,W] in [0,1]."""

    pixels: Floats
    copies: range
    tally: Tally


Batch = list[tuple[Section, range]]


class Smoother:
    """Runs a pipeline over noisy copies in batches of one fixed size.

    Sections of several images share batches; what a batch lacks at the very end is filled with
    further copies, which are drawn and discarded. The next batch is drawn while the engine works.
    """

    def __init__(self, pipeline: Pipeline, *, batch: int) -> None:
        if batch < 1:
            raise FvitError(f"batch = {batch}: a batch holds at least one copy")
        self.pipeline, self.batch, self.rows = pipeline, batch, batch

    def run(
        self,
        sections: Iterable[Section],
        *,
        sigma: float,
        seed: int,
        on_copies: Callable[[int], Any] = lambda copies: None,
    ) -> Iterator[Section]:
        """Count every copy of every section; yield each section when it is complete, in order.

        Sections are taken one batch ahead of the engine. on_copies is called with the number of
        copies counted since its last call.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="fvit-noise") as drawer:
            planned = batches(((section, section.copies) for section in sections), self.batch)
            drawn = drawer.submit(self._next, planned, sigma=sigma, seed=seed)
            while (current := drawn.result()) is not None:
                drawn = drawer.submit(self._next, planned, sigma=sigma, seed=seed)
                batch, noisy = current
                logits, attribution = self.pipeline(noisy, sigma=sigma)
                first = 0
                for section, copies in batch:
                    rows = slice(first, first + len(copies))
                    section.tally.add(logits[rows], attribution[rows])
                    first = rows.stop
                    on_copies(len(copies))
                    if copies.stop == section.copies.stop:
                        yield section

    def _next(self, planned: Iterator[Batch], *, sigma: float, seed: int) -> tuple[Batch, Floats] | None:
        batch = next(planned, None)
        if batch is None:
            return None
        last, copies = batch[-1]
        missing = self.batch - sum(len(part) for _, part in batch)
        padded = [*batch, (last, range(copies.stop, copies.stop + missing))]
        return batch, np.concatenate(
            [noisy_copies(section.pixels, part, sigma=sigma, seed=seed) for section, part in padded if part]
        )


def noisy_copies(pixels: Floats, copies: range, *, sigma: float, seed: int) -> Floats:
    """x + σ z_i for each i in copies: [len(copies),3,H,W] float32, not clipped."""
    drawn = noise.draw(np.arange(copies.start, copies.stop), size=pixels.size, seed=seed)
    drawn *= np.float32(sigma)
    drawn += pixels.ravel()
    return drawn.reshape(len(copies), *pixels.shape)


def batches(stretches: Iterable[tuple[Section, range]], size: int) -> Iterator[Batch]:
    """Cut stretches of copies into batches of `size` copies; only the last one may be smaller."""
    batch: Batch = []
    room = size
    for section, copies in stretches:
        rest = copies
        while rest:
            taken, rest = rest[:room], rest[room:]
            batch.append((section, taken))
            room -= len(taken)
            if room == 0:
                yield batch
                batch, room = [], size
    if batch:
        yield batch
