"""A bundle's way to a node: from a path that the node shares, or once through Ray's object store."""

from __future__ import annotations

import fcntl
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

Packed = Mapping[str, Any]
"""Where each file of a bundle, by its path inside, lies in the object store."""


def packed(bundle: Bundle) -> Packed:
    """The files of a bundle, and what was built from it for one GPU, in the object store of this node."""
    ray = ray_module()
    plans = (bundle.folder / PLANS).glob("*")
    names = [MANIFEST, *bundle.manifest.files, *(f"{PLANS}/{plan.name}" for plan in plans if plan.is_file())]
    return {name: ray.put(np.memmap(bundle.folder / name, np.uint8, "r")) for name in names}


def at_hand(folder: Path, digest: str) -> Bundle | None:
    """The bundle of this digest, every byte verified, where this node has it: in the folder that the command
    was given, or in its own cache."""
    for place in (folder, _cached(digest)):
        with suppress(FvitError):  # it is not here, or not as it was: it can travel
            if (bundle := open_bundle(place)).digest == digest:
                return bundle
    return None


def unpacked(files: Packed, digest: str) -> Bundle:
    """The bundle in this node's cache, from the object store, every byte verified.

    Of several processes on a node one writes it. Raises FvitError where it cannot be written, or is not the
    bundle of this digest.
    """
    ray = ray_module()
    place = _cached(digest)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.with_name(f"{digest}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (bundle := at_hand(place, digest)) is not None:
                return bundle
            with write_bundle(place) as part:
                for name, there in files.items():
                    (part / name).parent.mkdir(exist_ok=True)
                    (part / name).write_bytes(ray.get(there).data)
                arrived = open_bundle(part)
                if arrived.digest != digest:
                    raise FvitError(f"another bundle arrived than {digest[:12]}…: start again")
            return open_bundle(place)
    except OSError as error:
        raise FvitError(f"the bundle cannot be kept in {place}: {error.strerror}") from error


def _cached(digest: str) -> Path:
    return cache_folder() / "bundles" / digest
