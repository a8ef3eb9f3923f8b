"""FViT: faithful vision transformers, deployed.

    import fvit
    with fvit.load("bundle", device="cpu") as vit:
        vit.certify("photo.png", sigma=0.25, n=1000)

Names are loaded on first use, so that importing the package costs next to nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fvit.certificates.record import Certificate
    from fvit.errors import FvitError
    from fvit.runtime.faithful import FaithfulViT, Prediction
    from fvit.runtime.loading import load

__all__ = ["Certificate", "FaithfulViT", "FvitError", "Prediction", "load"]

_HOMES = {
    "Certificate": "fvit.certificates.record",
    "FaithfulViT": "fvit.runtime.faithful",
    "FvitError": "fvit.errors",
    "Prediction": "fvit.runtime.faithful",
    "load": "fvit.runtime.loading",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("fvit")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fvit' has no attribute '{name}'")
