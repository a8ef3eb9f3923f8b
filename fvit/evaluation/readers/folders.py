"""Class folders, as torchvision's ImageFolder has them: PLACE/CLASS/image.png. Images that lie in PLACE
itself have no label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fvit.evaluation.data import Data, Sample, of_file
from fvit.runtime.inputs import OnSkip, find_images
from fvit.runtime.labels import FOLDERS, labels_of


def class_folders(place: Path, *, names: Sequence[str], on_skip: OnSkip) -> Data:
    """names: of the bundle's classes. Raises FvitError as find_images and labels_of."""
    files = find_images([place], recursive=True, on_skip=on_skip)
    labels: Sequence[int | None] = labels_in_folders(files, place, names=names)
    samples = [Sample(file, of_file(file), label) for file, label in zip(files, labels, strict=True)]
    return Data("class folders", samples)


def labels_in_folders(files: Sequence[str], place: Path, *, names: Sequence[str]) -> Sequence[int | None]:
    """The labels of images by the folders that they lie in; none where all lie in `place` itself."""
    if all(Path(file).parent == place for file in files):
        return [None] * len(files)
    return labels_of(files, FOLDERS, names=names)
