"""Which layout a data set has, told by what lies there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fvit.errors import FvitError
from fvit.evaluation.data import Data
from fvit.evaluation.readers.cityscapes import cityscapes, is_cityscapes
from fvit.evaluation.readers.coco import coco, is_coco
from fvit.evaluation.readers.folders import class_folders
from fvit.evaluation.readers.image_masks import IMAGES, MASKS, image_masks
from fvit.evaluation.readers.imagenet_segmentation import imagenet_segmentation
from fvit.evaluation.readers.lists import csv_list
from fvit.runtime.inputs import OnSkip


def find_data(place: Path, *, names: Sequence[str], on_skip: OnSkip = lambda file, reason: None) -> Data:
    """The samples of a data set.

    A file is a CSV, ImageNet-Segmentation's .mat or an instances file of COCO; a folder is COCO's, that of
    Cityscapes or one of its splits, one with images and masks, or one with a folder a class. names: of the
    bundle's classes. Raises FvitError where it is none of them or cannot be read.
    """
    suffix = place.suffix.lower()
    if place.is_file():
        if suffix == ".mat":
            return imagenet_segmentation(place, names=names)
        if suffix == ".csv":
            return csv_list(place, names=names)
        if suffix == ".json":
            return coco(place, names=names)
        raise FvitError(
            f"{place} is no data set: give a folder, a .csv, a .mat or an instances_*.json of COCO"
        )
    if is_coco(place):
        return coco(place, names=names)
    if is_cityscapes(place):
        return cityscapes(place, on_skip=on_skip)
    if (place / IMAGES).is_dir() and (place / MASKS).is_dir():
        return image_masks(place, names=names, on_skip=on_skip)
    return class_folders(place, names=names, on_skip=on_skip)
