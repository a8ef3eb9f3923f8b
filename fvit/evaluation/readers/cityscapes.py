"""Cityscapes: PLACE/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and
PLACE/gtFine/SPLIT/CITY/*_gtFine_labelIds.png.

The object is what the data set counts as instances, people and vehicles; its category "void" is void.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from fvit.errors import FvitError
from fvit.evaluation.data import Data, Sample, of_file
from fvit.runtime.inputs import OnSkip, find_images
from fvit.runtime.masks import BACKGROUND, OBJECT, VOID, Mask, read_values

IMAGES, MASKS = "leftImg8bit", "gtFine"

LAST_VOID = 6
"""Ids 0 to 6: unlabelled, the car itself, borders, what is out of the region, static, dynamic, ground."""

OBJECTS = range(24, 34)
"""Ids of person, rider, car, truck, bus, caravan, trailer, train, motorcycle and bicycle."""


def cityscapes(place: Path, *, on_skip: OnSkip) -> Data:
    """All images of PLACE, or, where `place` is PLACE/leftImg8bit/SPLIT, of a split. They have no labels:
    several classes are on each. Raises FvitError where an image has no mask, and as find_images."""
    if (place / IMAGES).is_dir():
        place = place / IMAGES
    root = next(folder.parent for folder in _upwards(place) if folder.name == IMAGES)
    samples = []
    for file in find_images([place], recursive=True, on_skip=on_skip):
        path = Path(file)
        name = path.name.replace(f"_{IMAGES}", f"_{MASKS}_labelIds")
        mask = root / MASKS / path.relative_to(root / IMAGES).with_name(name).with_suffix(".png")
        if not mask.is_file():
            raise FvitError(f"{file} has no mask {mask}")
        samples.append(Sample(file, of_file(file), mask=partial(read_mask, mask)))
    return Data("Cityscapes", samples)


def is_cityscapes(place: Path) -> bool:
    """Whether a folder is, or lies in, a data set of this layout."""
    return (place / IMAGES).is_dir() or any(folder.name == IMAGES for folder in _upwards(place))


def read_mask(file: Path, shape: tuple[int, int]) -> Mask:
    """A mask [H,W] of this shape from a file of label ids. Raises FvitError as read_values."""
    ids = read_values(file, shape)
    mask = np.full(ids.shape, BACKGROUND, np.int8)
    mask[ids <= LAST_VOID] = VOID
    mask[np.isin(ids, list(OBJECTS))] = OBJECT
    return mask


def _upwards(place: Path) -> list[Path]:
    return [place, *place.parents]
