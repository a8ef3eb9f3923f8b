"""What certifies the pictures of a run: the model in this process, or workers elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.runtime.bundle import Bundle
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.images import Picture


@dataclass(frozen=True, eq=False)
class Certified:
    """One picture that is done. draw: writes its PNG to a file, and its thumbnails beside that, each whole or
    not at all."""

    picture: Picture
    certificate: Certificate
    draw: Callable[[Path], Any]


class Certifier(Protocol):
    """Certifies pictures with the bundle that it has."""

    @property
    def bundle(self) -> Bundle:
        """The bundle, opened and verified."""

    def certify(
        self,
        pictures: Iterable[Picture],
        terms: Terms,
        *,
        seconds: float | None,
        drawn: bool,
        on_copies: Callable[[int], Any] | None,
    ) -> Generator[Certified, None, None]:
        """Each picture once, in whatever order they are done; no more are read than are worked on.

        seconds: with terms that refine, how long each may take. drawn: whether `draw` will be called.
        on_copies: called with the number of copies counted since its last call, from any thread; None where
        nobody watches. Raises FvitError where it cannot go on.
        """


class Here:
    """The model in this process."""

    def __init__(self, vit: FaithfulViT) -> None:
        self.bundle = vit.bundle
        self._vit = vit

    def certify(
        self,
        pictures: Iterable[Picture],
        terms: Terms,
        *,
        seconds: float | None,
        drawn: bool,
        on_copies: Callable[[int], Any] | None,
    ) -> Generator[Certified, None, None]:
        under_way: deque[Picture] = deque()

        def noted() -> Iterator[Picture]:
            for picture in pictures:
                under_way.append(picture)
                yield picture

        certificates = self._vit.certify_many(
            noted(), terms, seconds=seconds, on_copies=on_copies or (lambda copies: None)
        )
        for certificate in certificates:
            picture = under_way.popleft()
            yield Certified(picture, certificate, partial(draw, self._vit, picture, certificate))


def draw(vit: FaithfulViT, picture: Picture, certificate: Certificate, file: Path) -> None:
    """As Certified has it."""
    from fvit.runtime.panels import Panels
    from fvit.runtime.pictures import write_picture
    from fvit.runtime.thumbnails import write_thumbnail

    panels = Panels.of(vit, picture, certificate)
    write_picture(panels, certificate, file=file)
    write_thumbnail(panels, certificate, folder=file.parent)
