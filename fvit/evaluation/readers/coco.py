"""COCO: PLACE/annotations/instances_SPLIT.json, and the images in PLACE/SPLIT.

The object is whatever is annotated; a crowd, whose outline is coarse, is void.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fvit.errors import FvitError
from fvit.evaluation.data import Data, Sample, of_file
from fvit.evaluation.readers.outlines import filled_polygon, filled_runs, runs_of_text
from fvit.runtime.images import reason_of
from fvit.runtime.inputs import open_plain
from fvit.runtime.masks import BACKGROUND, OBJECT, VOID, Mask, check_shape

ANNOTATIONS = "annotations"
PREFIX = "instances_"


Place = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Of a corner, in pixels."""


class Part(BaseModel):
    """What is read of the file; it holds more."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Runs(Part):
    counts: str | list[int]
    size: tuple[int, int]


class Annotation(Part):
    image_id: int
    category_id: int
    iscrowd: int = 0
    segmentation: list[Annotated[list[Place], Field(min_length=6)]] | Runs


class Image(Part):
    id: int
    file_name: str
    height: int
    width: int


class Category(Part):
    id: int
    name: str


class Instances(Part):
    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


def coco(place: Path, *, names: Sequence[str]) -> Data:
    """place: the data set's folder, where it has one instances_*.json with its images, or such a file.

    An image all of whose objects are of one category is labelled by that where the bundle has a class of this
    name; one without any has no mask. names: of the bundle's classes. Raises FvitError where the file
    cannot be read or an image is missing.
    """
    file = place if place.is_file() else _only_file(place)
    images = file.parent.parent / file.stem.removeprefix(PREFIX)
    instances = _parsed(file)
    annotations: dict[int, list[Annotation]] = {}
    for annotation in instances.annotations:
        annotations.setdefault(annotation.image_id, []).append(annotation)
    classes = {name: index for index, name in enumerate(names)}
    of_category = {each.id: classes.get(each.name) for each in instances.categories}
    samples = []
    for image in instances.images:
        path = images / image.file_name
        if not path.is_file():
            raise FvitError(f"{file} names {image.file_name}, which is not in {images}")
        objects = annotations.get(image.id, [])
        categories = {each.category_id for each in objects}
        label = of_category.get(categories.pop()) if len(categories) == 1 else None
        mask = partial(_mask, image, objects, file) if objects else None
        samples.append(Sample(str(path), of_file(str(path)), label, mask))
    if not samples:
        raise FvitError(f"{file} names no image")
    return Data("COCO", samples)


def is_coco(place: Path) -> bool:
    """Whether a folder is a data set of this layout."""
    return any((place / ANNOTATIONS).glob(f"{PREFIX}*.json"))


def _only_file(place: Path) -> Path:
    files = sorted((place / ANNOTATIONS).glob(f"{PREFIX}*.json"))
    usable = [file for file in files if (place / file.stem.removeprefix(PREFIX)).is_dir()]
    if len(usable) != 1:
        raise FvitError(
            f"{place} has {len(usable)} files {ANNOTATIONS}/{PREFIX}*.json with a folder of their images: "
            "name the one that is meant"
        )
    return usable[0]


def _parsed(file: Path) -> Instances:
    try:
        with open_plain(str(file)) as opened:
            return Instances.model_validate(json.load(opened))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FvitError(f"{file} is no instances file of COCO: {where}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FvitError(f"{file} cannot be read as JSON: {reason_of(error)}") from error


def _mask(image: Image, objects: Sequence[Annotation], file: Path, shape: tuple[int, int]) -> Mask:
    check_shape((image.height, image.width), shape, name=f"{file}, {image.file_name}")
    mask = np.full(shape, BACKGROUND, np.int8)
    try:
        for each in sorted(objects, key=lambda each: -each.iscrowd):  # an object in a crowd is known
            mask[_region(each, shape)] = VOID if each.iscrowd else OBJECT
    except ValueError as error:
        raise FvitError(f"{file}: an annotation of {image.file_name} cannot be drawn: {error}") from error
    return mask


def _region(annotation: Annotation, shape: tuple[int, int]) -> NDArray[np.bool_]:
    drawn = annotation.segmentation
    if isinstance(drawn, Runs):
        if drawn.size != shape:
            raise ValueError(f"it is of {drawn.size[1]}×{drawn.size[0]} pixels")
        return filled_runs(
            runs_of_text(drawn.counts) if isinstance(drawn.counts, str) else drawn.counts, shape
        )
    region = np.zeros(shape, np.bool_)
    for polygon in drawn:
        if len(polygon) % 2:
            raise ValueError("a corner lacks a coordinate")
        region |= filled_polygon(np.asarray(polygon, np.float64).reshape(-1, 2), shape)
    return region
