"""Heavy packages are imported where they are used; a missing one says which extra installs it."""

from __future__ import annotations

import importlib
from typing import Any

from fvit.errors import FvitError


class MissingExtra(FvitError, ImportError):
    """A package of an optional extra is not installed; the message names the pip install to run."""


def require(module: str, *, extra: str | None, purpose: str) -> Any:
    """Import `module`, or raise MissingExtra with the command that installs its extra, or the package
    itself where no extra holds it. Raises FvitError where it is installed and cannot be loaded."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if not (isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package):
            raise FvitError(
                f"{purpose} needs the package '{package}', which cannot be loaded: {error}"
            ) from error
        wanted = package if extra is None else f"'fvit[{extra}]'"
        raise MissingExtra(
            f"{purpose} needs the package '{package}', which is not installed: run  pip install {wanted}"
        ) from error


def require_export(purpose: str) -> None:
    """Raise as `require` where anything is missing that fvit.export cannot do without."""
    for module in ("torch", "timm", "diffusers", "onnx", "onnxscript"):
        require(module, extra="export", purpose=purpose)
