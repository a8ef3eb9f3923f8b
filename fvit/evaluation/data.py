"""A data set as samples, whatever its layout on the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fvit.runtime.images import ImageLike
from fvit.runtime.masks import Mask


@dataclass(frozen=True, eq=False)
class Sample:
    """One image, which is read when its turn comes.

    name: the path of its file, or of the file that holds it and its number there. image: what read_image
    takes. label: index of the right class. mask: where its object is, given the rows and columns of the
    upright image; both raise FvitError where they cannot be read.
    """

    name: str
    image: Callable[[], ImageLike]
    label: int | None = None
    mask: Callable[[tuple[int, int]], Mask] | None = None


@dataclass(frozen=True, eq=False)
class Data:
    """The samples of a data set, and what its layout is called."""

    layout: str
    samples: Sequence[Sample]

    def some(self, limit: int | None) -> list[Sample]:
        """All samples, or as many of them, in an order that is drawn once for all: whatever has been done
        when a run is stopped is a random part."""
        order = np.random.default_rng(0).permutation(len(self.samples))
        return [self.samples[place] for place in order[:limit]]


def of_file(file: str) -> Callable[[], ImageLike]:
    """What reads an image that has a file of its own."""
    return lambda: file
