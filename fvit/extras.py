"""Heavy packages are imported where they are used; a missing one says which extra installs it."""

from __future__ import annotations

import importlib
from typing import Any

from fvit.errors import FvitError


class MissingExtra(FvitError, ImportError):
    """A package of an optional extra is not installed; the message names the pip install to run."""


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import `module`, or raise MissingExtra with the command that installs its extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            raise
        raise MissingExtra(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"run  pip install 'fvit[{extra}]'"
        ) from error
