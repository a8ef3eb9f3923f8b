"""ImageNet-Segmentation (Guillaumin, Küttel & Ferrari, IJCV 2014): gtsegs_ijcv.mat, a MATLAB 7.3 file, which
is HDF5.

`value/img` and `value/gt` refer to one image and one cell of one mask each, `value/id` to the name of the
image, which begins with its WordNet synset. MATLAB counts down columns, so arrays lie there with their axes
reversed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fvit.errors import FvitError
from fvit.evaluation.data import Data, Sample
from fvit.extras import require
from fvit.runtime.decoding import MAX_PIXELS
from fvit.runtime.images import reason_of
from fvit.runtime.masks import BACKGROUND, OBJECT, Mask, check_shape

Found = TypeVar("Found")


def imagenet_segmentation(file: Path, *, names: Sequence[str]) -> Data:
    """The images in the order of the file, which stays open. They are labelled where every synset is the name
    of one of the bundle's classes. Raises FvitError where it cannot be read or is laid out otherwise."""
    archive = Archive(file)
    labels = _labels(archive.ids, names) or [None] * archive.images
    samples = [
        Sample(f"{file}#{place}", partial(archive.image, place), label, partial(archive.mask, place))
        for place, label in enumerate(labels)
    ]
    return Data("ImageNet-Segmentation", samples)


def _labels(ids: Sequence[str], names: Sequence[str]) -> Sequence[int | None] | None:
    places = {name: place for place, name in enumerate(names)}
    synsets = [each.partition("_")[0] for each in ids]
    return [places[each] for each in synsets] if places.keys() >= set(synsets) else None


class Archive:
    """The opened file. images: how many it has. ids: their names, or none."""

    def __init__(self, file: Path) -> None:
        h5py = require("h5py", extra="evaluate", purpose="reading a .mat file")
        self._file = file
        self._opened = self._read(lambda: h5py.File(file, "r"))
        self.images = self._read(lambda: len(self._opened["value"]["img"]))
        self.ids = self._read(self._ids)
        if len(self.ids) not in (0, self.images):
            raise FvitError(f"{file} has {self.images} images and the names of {len(self.ids)}")

    def image(self, place: int) -> NDArray[np.uint8]:
        """[H,W,3]."""

        def read() -> NDArray[np.uint8]:
            stored = self._value("img", place)
            if stored.dtype != np.uint8 or stored.size > 3 * MAX_PIXELS:
                raise ValueError(f"image {place} has values of {stored.dtype}, or too many")
            pixels = np.asarray(stored).T
            return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2))

        return self._read(read)

    def mask(self, place: int, shape: tuple[int, int]) -> Mask:
        """[H,W], which must be of this shape."""

        def read() -> Mask:
            stored = self._opened[self._value("gt", place)[0, 0]]
            check_shape(tuple(stored.shape[::-1]), shape, name=f"{self._file}#{place}")
            return np.where(np.asarray(stored).T > 0, OBJECT, BACKGROUND).astype(np.int8)

        return self._read(read)

    def _ids(self) -> list[str]:
        value = self._opened["value"]
        texts = [self._value("id", place)[()] for place in range(len(value["id"]) if "id" in value else 0)]
        return [bytes(text.astype(np.uint8).ravel()).decode("ascii") for text in texts]

    def _value(self, field: str, place: int) -> Any:
        return self._opened[self._opened["value"][field][place, 0]]

    def _read(self, reading: Callable[[], Found]) -> Found:
        try:
            return reading()
        except FvitError:
            raise
        except Exception as error:  # a damaged file fails in every way there is
            raise FvitError(
                f"{self._file} is not laid out as ImageNet-Segmentation's gtsegs_ijcv.mat: {reason_of(error)}"
            ) from error
