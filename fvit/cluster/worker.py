"""What runs on a node: one model that certifies several pictures at once."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Lock

from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.cluster.travel import Identity, Packed, at_hand, unpacked
from fvit.errors import FvitError
from fvit.runtime.batching import code
from fvit.runtime.certifier import draw
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.images import Picture
from fvit.runtime.loading import Batch, load
from fvit.runtime.queue import Account

Drawn = Mapping[str, bytes]
"""What is drawn of a picture: files by their paths in a folder."""

PNG = "picture.png"
"""The path of its PNG there, which has another name where it is kept."""


@dataclass(frozen=True)
class Setting:
    """What a worker is to load, and where. bundle: the folder as the command found it; identity: the bundle
    that it has to be; cores: of a CPU, None for all. version, code: of fvit."""

    bundle: Path
    identity: Identity
    device: str
    batch: Batch | None
    cores: int | None
    version: str
    code: str


@dataclass(frozen=True)
class Started:
    """A worker that is ready: the node's name, and the rows that its devices take together."""

    host: str
    rows: int


class Worker:
    """An actor; its calls run in one event loop, the model's work in the model's threads."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._vit: FaithfulViT | None = None
        self._account = Account()
        self._counted: dict[str, int] = {}
        self._lock = Lock()

    async def start(self, files: Packed | None = None) -> Started | None:
        """Load the bundle. None where this node does not have it: it is then to be given.

        Raises FvitError where it cannot be loaded, or this node's fvit is another.
        """
        setting, host = self._setting, socket.gethostname()
        if (own := (version("fvit"), code())) != (setting.version, setting.code):
            raise FvitError(
                f"{host} has fvit {own[0]} ({own[1]}), the command is {setting.version} ({setting.code}): "
                "install one of them on all"
            )
        bundle = await asyncio.to_thread(at_hand, setting.bundle, setting.identity)
        if bundle is None and files is None:
            return None
        if bundle is None:
            assert files is not None
            bundle = await asyncio.to_thread(unpacked, files, setting.identity)
        self._vit = await asyncio.to_thread(
            load, bundle, device=setting.device, batch=setting.batch, cores=setting.cores
        )
        return Started(host, self._vit.rows)

    async def certify(
        self, picture: Picture, terms: Terms, *, seconds: float | None, drawn: bool
    ) -> tuple[Certificate, Drawn]:
        """The certificate of a picture and, where it is to be drawn, its pictures. Raises FvitError as the
        model does."""
        assert self._vit is not None and terms.seed is not None
        self._counted[picture.pixels_sha256] = 0

        def count(copies: int) -> None:  # in the devices' threads
            with self._lock:
                if picture.pixels_sha256 in self._counted:
                    self._counted[picture.pixels_sha256] += copies

        growing = self._vit.certifying(
            picture, terms, seconds=seconds, account=self._account, on_copies=count
        )  # fmt: skip
        try:
            certificate = await asyncio.wrap_future(growing)
        finally:
            with self._lock:
                del self._counted[picture.pixels_sha256]
        if not drawn:
            return certificate, {}
        return certificate, await asyncio.to_thread(_drawn, self._vit, picture, certificate)

    async def under_way(self) -> int:
        """Copies that are counted of pictures that are not done."""
        with self._lock:
            return sum(self._counted.values())


def _drawn(vit: FaithfulViT, picture: Picture, certificate: Certificate) -> Drawn:
    with tempfile.TemporaryDirectory() as folder:
        draw(vit, picture, certificate, Path(folder) / PNG)
        files = (file for file in Path(folder).rglob("*") if file.is_file())
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}
