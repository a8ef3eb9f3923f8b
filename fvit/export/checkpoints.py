"""Reading a local checkpoint: tensors only, never code."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fvit.errors import FvitError


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of the wrappings that training scripts put around them.

    file: .safetensors, or what torch saved. Raises FvitError where it cannot be read, holds code, or is
    no mapping from names to tensors.
    """
    try:
        if file.exists() and not file.is_file():  # a device may never end
            raise FvitError(f"{file} is no regular file, which a checkpoint is: give one")
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise FvitError(
            f"{file} holds more than tensors, so loading it could run code: refused; "
            "save its state_dict, best as .safetensors"
        ) from error
    except FvitError:
        raise
    except Exception as error:  # damaged files fail in every way there is
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise FvitError(f"{file} cannot be read as a checkpoint: {said}") from error
    for wrapping in ("state_dict", "model", "state_dict_ema", "model_ema"):
        if isinstance(found, dict) and isinstance(found.get(wrapping), dict):
            found = found[wrapping]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise FvitError(f"{file} is no state_dict: it maps names to other things than tensors")
    return {name.removeprefix("module."): value for name, value in found.items()}


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], *, file: Path) -> None:
    """Put every tensor in its place; raises FvitError with the first mismatches where one has none."""
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is not the model's" for name in tensors if name not in own]
    wrong += [
        f"{name} is {list(tensors[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    refuse(file, "does not fit the model", wrong)
    model.load_state_dict(tensors)


def refuse(file: Path, what: str, wrong: list[str]) -> None:
    """Raise FvitError with the first three of what is wrong with a checkpoint, if anything is."""
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise FvitError(f"{file} {what}: {'; '.join(wrong[:3])}{more}")
