"""fvit-verify: does every claim of a certificates.jsonl follow, and does it come out again?"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fvit import commands
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
from fvit.runtime.journal import NAME
from fvit.runtime.loading import load

app = typer.Typer(add_completion=False)
console = Console(soft_wrap=True, highlight=False)

LONGEST = 1 << 24
"""Bytes of a line: a record of ten thousand tokens takes a fifth of this."""

LONGEST_NAME = 4096
"""Characters of an image's name that are shown."""

TOO_LONG = FvitError(f"is longer than {LONGEST:,} bytes: no record")

HOPELESS = 100
"""So many lines without an object that names its image, as every record does, and the file is another."""


@app.command(no_args_is_help=True)
def fvit_verify(
    certificates: Annotated[Path, typer.Argument(help="A certificates.jsonl.")],
    bundle: Annotated[
        str | None, typer.Option(help="Draw the copies again with this bundle, or demo, and compare.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="Their images, or folders of them; may be repeated.")
    ] = None,
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
            pictures = _pictures(find_images(images), size=vit.pipeline.image_size, max_pixels=max_pixels)
            for number, line in lines_of(certificates):
                total += 1
                good += _told(number, line, _findings(line) or _compared(vit, line, pictures))
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


def _pictures(files: list[str], *, size: tuple[int, int], max_pixels: int) -> dict[str, Picture]:
    """By the hash of their pixels; what cannot be read is said, and left out."""
    found = {}
    for file in files:
        try:
            picture = read_image(file, size=size, max_pixels=max_pixels)
        except FvitError as error:
            commands.complain(str(error))
        else:
            found[picture.pixels_sha256] = picture
    return found


def _compared(vit: FaithfulViT, record: dict[str, Any], pictures: dict[str, Picture]) -> list[str]:
    """What the copies of a record that follows, drawn again, have against it."""
    said = Certificate.model_validate(record)
    if said.bundle != vit.bundle.digest:
        return [f"bundle {said.bundle[:12]}… made it, not this one ({vit.bundle.digest[:12]}…)"]
    if (picture := pictures.get(said.pixels_sha256)) is None:
        return ["its image is not among those given"]
    if said.size != vit.pipeline.image_size:
        return ["size is not that of this bundle's copies"]
    try:
        terms = _asked(vit, said.terms)
    except FvitError as error:
        return [f"its copies cannot be drawn here: {error}"]
    found = vit.recount(picture, terms, copies=said.copies)
    weaker = [*_misnamed(said, found)]
    if not said.class_.abstained and (
        found.class_.index != said.class_.index or found.class_.radius_l2 < said.class_.radius_l2
    ):
        recorded, here = (in_digits(each.class_.radius_l2, digits=4) for each in (said, found))
        weaker.append(
            f"class {said.class_.label} at {recorded} is recorded, the copies give {found.class_.label} at "
            f"{here} here"
        )
    for one, other in zip(said.attentions, found.attentions, strict=True):
        if not one.abstained and (set(one.tokens) != set(other.tokens) or other.radius_l2 < one.radius_l2):
            recorded, here = (in_digits(each.radius_l2, digits=4) for each in (one, other))
            weaker.append(
                f"the top {one.k} tokens at {recorded} are recorded, the copies give "
                f"{len(set(one.tokens) & set(other.tokens))} of them and {here} here"
            )
        here_each = dict(zip(other.tokens, other.token_radii, strict=True))
        each = zip(one.tokens, one.token_radii, strict=True)
        if short := sum(radius > here_each.get(token, 0.0) for token, radius in each):
            weaker.append(
                f"{short} of the top {one.k} tokens are recorded to stay further than the copies give here"
            )
        curves = zip(one.curve, other.curve, strict=True)
        if short := sum(radius > now for (_, radius), (_, now) in curves):
            weaker.append(f"{short} of radius_by_beta at k = {one.k} are larger than the copies give here")
        pairs = zip(one.map_radii or (), other.map_radii or (), strict=True)
        # Above 0 a token is in, below 0 it is out: it is to reach as far on the same side.
        if short := sum(abs(radius) > (now if radius > 0 else -now) for radius, now in pairs if radius):
            weaker.append(
                f"{short} of the {len(one.votes)} tokens of the map at k = {one.k} are recorded to keep "
                "their sides further than the copies give here"
            )
    if said.decision is not None and found.decision != said.decision:
        weaker.append(f"'{said.decision.answer}' is recorded, the copies are {_answer(found)} here")
    return weaker


def _misnamed(said: Certificate, found: Certificate) -> Iterator[str]:
    """What no count tells: what the bundle calls a class, and how its tokens lie."""
    if said.class_.index == found.class_.index and said.class_.label != found.class_.label:
        yield f"class {said.class_.index} is '{found.class_.label}' in this bundle, not '{said.class_.label}'"
    if said.attention.grid != found.attention.grid:
        rows, columns = found.attention.grid
        yield f"this bundle's tokens lie on a grid of {rows}×{columns}"


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
