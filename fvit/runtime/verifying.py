"""fvit-verify: does every claim of a certificates.jsonl follow, and does it come out again?"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from fvit import commands
from fvit.certificates.claims import AttentionClaim
from fvit.certificates.radii import in_digits
from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.certificates.verify import verify
from fvit.errors import FvitError
from fvit.runtime.bundle import Twice, once_each
from fvit.runtime.decoding import MAX_PIXELS
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.images import SPECIAL, Picture, read_image
from fvit.runtime.inputs import find_images
from fvit.runtime.journal import LONGEST, NAME
from fvit.runtime.loading import load

app = typer.Typer(add_completion=False)
console = Console(soft_wrap=True, highlight=False)
problems = Console(stderr=True)

LONGEST_NAME = 4096
"""Characters of an image's name that are shown."""

TOO_LONG = FvitError(f"is longer than {LONGEST:,} bytes: no record")

HOPELESS = 100
"""So many lines without an object that names its image, as every record does, and the file is another."""

MAX_COPIES = 1_000_000
"""Copies of a record that are drawn again unless told: it may name a thousand times as many."""


@app.command(no_args_is_help=True)
def fvit_verify(
    certificates: Annotated[Path, typer.Argument(help="A certificates.jsonl.")],
    bundle: Annotated[
        str | None, typer.Option(help="Draw the copies again with this bundle, or demo, and compare.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="Their images, or folders of them; may be repeated.")
    ] = None,
    max_copies: Annotated[
        int,
        typer.Option(help="Draw no record again that has more copies: it counts as one that fails.", min=1),
    ] = MAX_COPIES,
    device: Annotated[str, typer.Option(help="As for fvit-certify; for drawing again.")] = "cpu",
    max_pixels: Annotated[
        int, typer.Option(help="Refuse larger images before they are decoded.", min=1)
    ] = MAX_PIXELS,
    _version: commands.VersionOption = False,
) -> None:
    """Derive every number of every record again from its counts, and say what does not follow.

    The exit status is 0 only if every claim of every record follows; with --bundle and --images, only if
    the copies, drawn again on this engine, also support it.
    """
    if (bundle is None) != (not images):
        raise FvitError("drawing copies again takes both: give --bundle and --images")
    good = total = 0
    if bundle is None or images is None:
        for number, line in lines_of(certificates):
            total += 1
            good += _told(number, line, _findings(line))
    else:
        with load(bundle, device=device) as vit:
            commands.on_interruption(lambda: vit.queue.close(cancel=True))
            files = _files(find_images(images), size=vit.pipeline.image_size, max_pixels=max_pixels)
            again = Again(vit, files, max_pixels=max_pixels, max_copies=max_copies)
            for number, line in lines_of(certificates):
                total += 1
                good += _told(number, line, _findings(line) or again.findings(number, line))
    words = "every claim follows from its counts" if bundle is None else "every claim holds on this engine"
    console.print(f"{good:,} of {total:,} records: {words}")
    if good < total:
        raise typer.Exit(1)


def lines_of(file: Path) -> Iterator[tuple[int, Any]]:
    """The lines of a file with their numbers, each as what its JSON holds, or a FvitError where it is none.

    Raises FvitError where the file is neither a regular one nor a pipe, cannot be read or is empty, or
    where nothing in its first HOPELESS lines, or before a line of more than LONGEST bytes, is a record.
    """
    number = records = 0
    try:
        # A pipe that nobody writes to opens, and ends, at once.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
            kind = os.fstat(opened.fileno()).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISFIFO(kind):
                raise FvitError(f"{file} is {SPECIAL.get(stat.S_IFMT(kind), 'no file')}, no {NAME}")
            os.set_blocking(opened.fileno(), True)
            while line := opened.readline(LONGEST + 1):
                number += 1
                found = _parsed(line) if len(line) <= LONGEST else TOO_LONG
                records += isinstance(found, dict) and "image" in found
                if not records and (number == HOPELESS or found is TOO_LONG):
                    raise FvitError(f"{file} is no {NAME}: nothing at its beginning is a record")
                while found is TOO_LONG and not line.endswith(b"\n") and line:
                    line = opened.readline(LONGEST)
                yield number, found
    except OSError as error:
        raise FvitError(f"{file} cannot be read: {error.strerror}") from error
    if number == 0:
        raise FvitError(f"{file} is empty: it holds no record")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line, object_pairs_hook=once_each)
    except Twice:
        return FvitError("has a field twice")
    except (ValueError, RecursionError):
        return FvitError("is no JSON: broken, or cut off")


def _findings(line: Any) -> list[str]:
    if isinstance(line, FvitError):
        return [str(line)]
    try:
        return verify(line)
    except ArithmeticError as error:
        return [f"its numbers cannot be computed with: {error}"]


def _files(files: list[str], *, size: tuple[int, int], max_pixels: int) -> dict[str, str]:
    """By the hash of their pixels, of which memory would not hold those of a data set; what cannot be read is
    said, and left out."""
    found = {}
    for file in files:
        if commands.interrupted():  # what `cancel` does not reach
            raise CancelledError
        try:
            found[read_image(file, size=size, max_pixels=max_pixels).pixels_sha256] = file
        except FvitError as error:
            commands.complain(str(error))
    return found


@dataclass(frozen=True)
class Again:
    """Draws the copies of records again. files: the images, by the hash of their pixels."""

    vit: FaithfulViT
    files: dict[str, str]
    max_pixels: int
    max_copies: int

    def findings(self, number: int, record: dict[str, Any]) -> list[str]:
        """What the copies of a record that follows, drawn again, have against it; or why none are."""
        said = Certificate.model_validate(record)
        if foreign := self._foreign(said):
            return [foreign]
        try:
            terms = _asked(self.vit, said.terms)
            picture = self._picture(said.pixels_sha256)
        except FvitError as error:
            return [f"its copies cannot be drawn here: {error}"]
        if said.copies > self.max_copies:
            return [f"not drawn again: {said.copies:,} copies, more than --max-copies {self.max_copies:,}"]
        with _watched(self.vit, number, said.copies):
            found = self.vit.recount(picture, terms, copies=said.copies)
        return [*_weaker(said, found)]

    def _foreign(self, said: Certificate) -> str | None:
        """Why a record cannot be one of this bundle and these images, which no copy is needed to tell."""
        manifest = self.vit.bundle.manifest
        if said.bundle != self.vit.bundle.digest:
            return f"bundle {said.bundle[:12]}… made it, not this one ({self.vit.bundle.digest[:12]}…)"
        if said.pixels_sha256 not in self.files:
            return "its image is not among those given"
        if said.size != manifest.image_size:
            return "size is not that of this bundle's copies"
        if said.attention.grid != manifest.grid:
            rows, columns = manifest.grid
            return f"this bundle's tokens lie on a grid of {rows}×{columns}"
        if max(map(int, said.class_.counts)) >= len(manifest.labels):
            return f"this bundle has {len(manifest.labels):,} classes, and others are counted"
        return None

    def _picture(self, pixels_sha256: str) -> Picture:
        """Read anew; raises FvitError where that fails, or the file holds another image by now."""
        file = self.files[pixels_sha256]
        picture = read_image(file, size=self.vit.pipeline.image_size, max_pixels=self.max_pixels)
        if picture.pixels_sha256 != pixels_sha256:
            raise FvitError(f"{file} has changed since it was read first")
        return picture


def _watched(vit: FaithfulViT, number: int, copies: int) -> Progress:
    """How far the copies of a record are, on a terminal; first of all, how many there are."""
    progress = Progress(
        Drawn(vit, number), console=problems, transient=True, disable=not problems.is_terminal
    )
    progress.add_task("", total=copies)
    return progress


class Drawn(ProgressColumn):
    """Of a queue that has nothing else to do."""

    def __init__(self, vit: FaithfulViT, number: int) -> None:
        super().__init__()
        self._queue, self._number = vit.queue, number
        self._before = vit.queue.statistics.copies

    def render(self, task: Task) -> Text:
        statistics = self._queue.statistics
        drawn = statistics.copies - self._before
        rate = f", {statistics.rate:,.0f} copies/s" if statistics.rate else ""
        return Text(f"line {self._number}, drawn again: {drawn:,} of {task.total:,.0f} copies{rate}")


def _weaker(said: Certificate, found: Certificate) -> Iterator[str]:
    """What a record claims that is more than its copies, drawn again, give."""
    # No count tells what the bundle calls a class.
    if said.class_.index == found.class_.index and said.class_.label != found.class_.label:
        yield f"class {said.class_.index} is '{found.class_.label}' in this bundle, not '{said.class_.label}'"
    if not said.class_.abstained and (
        found.class_.index != said.class_.index or found.class_.radius_l2 < said.class_.radius_l2
    ):
        recorded, here = (in_digits(each.class_.radius_l2, digits=4) for each in (said, found))
        yield (
            f"class {said.class_.label} at {recorded} is recorded, the copies give {found.class_.label} at "
            f"{here} here"
        )
    for one, other in zip(said.attentions, found.attentions, strict=True):
        yield from _weaker_explanation(one, other)
    if said.decision is not None and found.decision != said.decision:
        yield f"'{said.decision.answer}' is recorded, the copies are {_answer(found)} here"


def _weaker_explanation(one: AttentionClaim, other: AttentionClaim) -> Iterator[str]:
    """The same of one explanation, as it is recorded and as it is here."""
    if not one.abstained and (set(one.tokens) != set(other.tokens) or other.radius_l2 < one.radius_l2):
        recorded, here = (in_digits(each.radius_l2, digits=4) for each in (one, other))
        yield (
            f"the top {one.k} tokens at {recorded} are recorded, the copies give "
            f"{len(set(one.tokens) & set(other.tokens))} of them and {here} here"
        )
    here_each = dict(zip(other.tokens, other.token_radii, strict=True))
    each = zip(one.tokens, one.token_radii, strict=True)
    if short := sum(radius > here_each.get(token, 0.0) for token, radius in each):
        yield f"{short} of the top {one.k} tokens are recorded to stay further than the copies give here"
    curves = zip(one.curve, other.curve, strict=True)
    if short := sum(radius > now for (_, radius), (_, now) in curves):
        yield f"{short} of radius_by_beta at k = {one.k} are larger than the copies give here"
    pairs = zip(one.map_radii or (), other.map_radii or (), strict=True)
    # Above 0 a token is in, below 0 it is out: it is to reach as far on the same side.
    if short := sum(abs(radius) > (now if radius > 0 else -now) for radius, now in pairs if radius):
        yield (
            f"{short} of the {len(one.votes)} tokens of the map at k = {one.k} are recorded to keep "
            "their sides further than the copies give here"
        )


def _asked(vit: FaithfulViT, terms: Terms) -> Terms:
    """These terms, as this bundle can meet them; raises FvitError where it cannot."""
    asked = dataclasses.asdict(terms)
    del asked["size"]
    return vit.terms(**asked)


def _answer(found: Certificate) -> str:
    return "no decision" if found.decision is None else f"'{found.decision.answer}'"


def _told(number: int, line: Any, findings: list[str]) -> bool:
    """Print one record's row; whether it is good."""
    name = f"line {number}"
    if isinstance(line, dict) and isinstance(line.get("image"), str):
        name += f", {commands.one_line(line['image'][:LONGEST_NAME])}"
    row = Text(f"{name}: ")
    row.append(
        commands.one_line("; ".join(findings)) if findings else "follows",
        style="red" if findings else "green",
    )
    console.print(row)
    return not findings
