"""A bundle's way to a node: from a path that the node shares, or once through Ray's object store."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fvit.cluster.connecting import ray_module
from fvit.engines.base import PLANS
from fvit.errors import FvitError
from fvit.runtime.bundle import MANIFEST, Bundle, open_bundle, write_bundle
from fvit.runtime.gpu.kernels import cache_folder

Identity = tuple[str, str]
"""Of a bundle: its digest, and what stands for the plans in it, which may come later and are not in its
digest."""

Packed = Mapping[str, Any]
"""Where each file of a bundle, by its path inside, lies in the object store."""


def identity(bundle: Bundle) -> Identity:
    """Of two plans with one name one may have been built again, and compute in another order."""
    plans = hashlib.sha256()
    for name in _built(bundle):
        if name.endswith(".plan"):
            plans.update(name.encode())
            with (bundle.folder / name).open("rb") as file:
                while part := file.read(1 << 24):
                    plans.update(part)
    return bundle.digest, plans.hexdigest()[:12]


def packed(bundle: Bundle) -> Packed:
    """The files of a bundle, and what was built from it for one GPU, in the object store of this node."""
    ray = ray_module()
    names = [MANIFEST, *bundle.manifest.files, *_built(bundle)]
    return {name: ray.put(np.memmap(bundle.folder / name, np.uint8, "r")) for name in names}


def at_hand(folder: Path, wanted: Identity) -> Bundle | None:
    """This bundle, every byte verified, where this node has it: in the folder that the command was given, or
    in its own cache."""
    for place in (folder, _cached(wanted)):
        with suppress(FvitError):  # it is not here, or not as it was: it can travel
            if identity(bundle := open_bundle(place)) == wanted:
                return bundle
    return None


def unpacked(files: Packed, wanted: Identity) -> Bundle:
    """The bundle in this node's cache, from the object store, every byte verified.

    Of several processes on a node one writes it. Raises FvitError where it cannot be written, or is not the
    bundle that is wanted.
    """
    ray = ray_module()
    place = _cached(wanted)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.with_name(f"{place.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (bundle := at_hand(place, wanted)) is not None:
                return bundle
            with write_bundle(place) as part:
                for name, there in files.items():
                    (part / name).parent.mkdir(exist_ok=True)
                    (part / name).write_bytes(ray.get(there).data)
                arrived = open_bundle(part)
                if identity(arrived) != wanted:
                    raise FvitError(f"another bundle arrived than {wanted[0][:12]}…: start again")
            return open_bundle(place)
    except OSError as error:
        raise FvitError(f"the bundle cannot be kept in {place}: {error.strerror}") from error


def _built(bundle: Bundle) -> list[str]:
    """Paths in the folder of what was built from a bundle."""
    found = (file for file in (bundle.folder / PLANS).glob("*") if file.is_file())
    return sorted(f"{PLANS}/{file.name}" for file in found)


def _cached(wanted: Identity) -> Path:
    return cache_folder() / "bundles" / "-".join(wanted)
