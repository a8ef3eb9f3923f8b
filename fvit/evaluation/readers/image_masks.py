"""Two folders side by side: PLACE/images/… and, under the same names, PLACE/masks/…"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fvit.evaluation.data import Data, Sample, of_file
from fvit.evaluation.readers.folders import labels_in_folders
from fvit.runtime.inputs import OnSkip, find_images
from fvit.runtime.masks import masks_of, read_mask

IMAGES, MASKS = "images", "masks"


def image_masks(place: Path, *, names: Sequence[str], on_skip: OnSkip) -> Data:
    """Images in folders within `images` are labelled by these, and their masks lie in such folders too.

    names: of the bundle's classes. Raises FvitError where an image has no mask, and as find_images and
    labels_of.
    """
    images, masks = place / IMAGES, place / MASKS
    files = find_images([images], recursive=True, on_skip=on_skip)
    labels = labels_in_folders(files, images, names=names)
    samples = [
        Sample(file, of_file(file), label, partial(read_mask, mask))
        for file, label, mask in zip(files, labels, masks_of(files, images=images, masks=masks), strict=True)
    ]
    return Data("images and masks", samples)
