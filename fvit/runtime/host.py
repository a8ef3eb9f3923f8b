"""Draws, runs the networks and counts on the CPU; and the pipeline of a bundle, which every device has."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.tally import Tally
from fvit.engines.base import Engine
from fvit.errors import FvitError
from fvit.runtime import noise
from fvit.runtime.queue import CLOSED, Batch, Stretch
from fvit.runtime.schedule import Schedule

Floats = NDArray[np.float32]


class Pipeline(Protocol):
    """The function that is smoothed: noisy copies in, one row of results for each copy out.

    A row of the results depends on the same row of the input alone (docs/method.md, section 9).
    """

    def __call__(self, noisy: Floats, *, sigma: Floats) -> tuple[Floats, Floats]:
        """noisy [B,3,H,W] in [0,1] units, sigma [B] that was added -> logits [B,C], attribution [B,N]."""


class DenoisedClassifier:
    """The pipeline of a bundle: its denoiser engine, then its classifier engine."""

    def __init__(
        self, denoiser: Engine, classifier: Engine, *, schedule: Schedule, image_size: tuple[int, int]
    ):
        self.image_size = image_size
        self.schedule = schedule
        self._engines = [denoiser, classifier]
        self.engine, self.precision = classifier.name, classifier.precision
        shapes = {tensor.name: tensor.shape for tensor in classifier.outputs}
        classes, tokens = shapes["logits"][1], shapes["attribution"][1]
        if classes is None or tokens is None:
            raise FvitError(
                "the classifier graph leaves the number of classes or tokens open: export it again"
            )
        self.classes, self.tokens = classes, tokens

    def denoise(self, noisy: Floats, *, sigma: Floats) -> Floats:
        """noisy [B,3,H,W], sigma [B] -> images [B,3,h,w] in [0,1], one step of the diffusion model."""
        levels = {
            "sigma": np.asarray(sigma, np.float32),
            "timestep": self.schedule.timestep(sigma).astype(np.float32),
        }
        return self._engine(0).run({"noisy": noisy, **levels})["images"]

    def classify(self, images: Floats) -> tuple[Floats, Floats]:
        """images [B,3,h,w] in [0,1] -> logits [B,C], attribution [B,N]."""
        outputs = self._engine(1).run({"images": images})
        return outputs["logits"], outputs["attribution"]

    def __call__(self, noisy: Floats, *, sigma: Floats) -> tuple[Floats, Floats]:
        return self.classify(self.denoise(noisy, sigma=sigma))

    def close(self) -> None:
        """Release the engines, and their memory to the system: glibc would keep some of it for good in the
        arenas of threads that have ended."""
        self._engines.clear()
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)

    def _engine(self, place: int) -> Engine:
        if not self._engines:
            raise FvitError(CLOSED)
        return self._engines[place]


class HostCounter:
    """One CPU core: several, each with its own, share the engines of one pipeline.

    rows, grain: as Counter has them.
    """

    ahead = 0

    def __init__(self, pipeline: Pipeline, *, rows: int, grain: int = 1) -> None:
        self.rows, self.grain = rows, grain
        self._pipeline: Pipeline | None = pipeline

    def begin(self, batch: Batch) -> Callable[[], Sequence[Tally | FvitError]]:
        """Everything is done at once: a core has nothing to wait for."""
        assert self._pipeline is not None
        noisy = np.concatenate(
            [
                noise.noisy_copies(stretch.picture.pixels, copies, sigma=stretch.sigma, key=stretch.key)
                for stretch, copies in batch
            ]
        )
        sigma = np.repeat(
            np.array([stretch.sigma for stretch, _ in batch], np.float32),
            [len(copies) for _, copies in batch],
        )
        logits, attribution = self._pipeline(noisy, sigma=sigma)
        counted, first = [], 0
        for stretch, copies in batch:
            rows = slice(first, first + len(copies))
            counted.append(_counted(stretch, logits[rows], attribution[rows]))
            first = rows.stop
        return lambda: counted

    def close(self) -> None:
        self._pipeline = None


def _counted(stretch: Stretch, logits: Floats, attribution: Floats) -> Tally | FvitError:
    tally = stretch.tally.empty()
    try:
        tally.add(logits, attribution)
    except FvitError as error:
        return error
    return tally
