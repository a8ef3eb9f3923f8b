"""What a request asks: its task, its image, its terms."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from fvit.errors import FvitError
from fvit.runtime.faithful import MOST_REFINED, Asked, PredictAsked, RefineAsked
from fvit.runtime.images import Picture, read_encoded, read_image

Task = Literal["predict", "certify", "refine"]

TERMS: dict[Task, frozenset[str]] = {
    "predict": frozenset(PredictAsked.__annotations__),
    "certify": frozenset(Asked.__annotations__),
    "refine": frozenset({"n", "seconds", *RefineAsked.__annotations__}),
}
"""Inputs that a task takes beside its image."""

COPIES: dict[Task, int] = {"predict": 32, "certify": 1000, "refine": MOST_REFINED}
"""Copies of an image unless told; of a refinement at most."""

RESERVED = "triton_"
"""What the parameters begin with that Triton's own clients send."""


@dataclass(frozen=True)
class Request:
    """A request's task, its image as it came, and those of the task's terms that it has."""

    task: Task
    image: bytes | NDArray[np.uint8]
    terms: dict[str, Any]

    @classmethod
    def of(cls, inputs: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any]) -> Request:
        """From the tensors of a request and its parameters.

        Raises FvitError for a task that is unknown, for no image or two, and for what the task does not take.
        No parameter is taken: it would be a misspelt term that nobody hears of.
        """
        given = {name: _value(name, array) for name, array in inputs.items()}
        task = cast(Task, given.pop("task", "certify"))
        if task not in TERMS:
            raise FvitError(f"task '{task}' is unknown: use {', '.join(get_args(Task))}")
        images = [given.pop(name) for name in ("image", "pixels") if name in given]
        if len(images) != 1:
            raise FvitError(
                "give one image: as image, the bytes of a file, or as pixels, uint8 [rows, columns, 3]"
            )
        unknown = [name for name in parameters if not name.startswith(RESERVED)]
        unknown += given.keys() - TERMS[task]
        if unknown:
            raise FvitError(
                f"{task} takes no {', '.join(sorted(unknown))}: its inputs are image or pixels, "
                + ", ".join(sorted(TERMS[task]))
            )
        seconds = given.get("seconds", 1.0)
        if not seconds > 0:
            raise FvitError(f"seconds = {seconds:g}: the time to refine must be positive")
        return cls(task, images[0], given)

    def read(self, *, size: tuple[int, int]) -> Picture:
        """The image at the model's size. Raises FvitError where it cannot be read.

        JSON holds no bytes, so that an image may come in base64, which no file of an image is by itself.
        """
        if isinstance(self.image, np.ndarray):
            return read_image(self.image, size=size)
        try:
            data = base64.b64decode(self.image, validate=True)
        except binascii.Error:
            data = self.image
        return read_encoded(data, size=size)


def _value(name: str, array: NDArray[Any]) -> Any:
    if name == "pixels":
        return array
    if name == "k":
        return array.tolist()
    if array.size != 1:
        raise FvitError(f"{name} has {array.size} values: give one")
    value = array.item()
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) and name != "image" else value
