"""What --denoiser names -> a denoiser to export."""

from __future__ import annotations

from pathlib import Path

from fvit.errors import FvitError
from fvit.export.adm import load_adm
from fvit.export.denoisers import Diffusion, load_diffusers
from fvit.export.restoration import Restoration, is_callable, load_restoration


def load_denoiser(
    name: str, *, adm_flags: str | None = None, null_class: int | None = None
) -> Diffusion | Restoration:
    """A checkpoint file, a folder, module:callable, or a model of the hub. Raises FvitError as load_adm,
    load_diffusers and load_restoration do, and for what is told of another kind than it is."""
    place = Path(name)
    is_own = not place.exists() and is_callable(name)
    if adm_flags is not None and not place.is_file():
        raise FvitError(f"--adm-flags describe a checkpoint file, and '{name}' is none")
    if null_class is not None and (is_own or place.is_file()):
        raise FvitError(f"--null-class is a class of a diffusers model, and '{name}' is none")
    if place.is_file():
        return load_adm(place, flags=adm_flags)
    return load_restoration(name) if is_own else load_diffusers(name, null_class=null_class)
