"""fvit-certify: certificates of images, as a table, as records, as pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fvit import commands
from fvit.certificates.claims import AttentionClaim, ClassClaim
from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.extras import require
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.images import MAX_PIXELS, Picture, find_images, read_image
from fvit.runtime.journal import NAME, Journal
from fvit.runtime.loading import Batch, load

app = typer.Typer(add_completion=False)
console = Console()
problems = Console(stderr=True)


LONGEST_STEM = 200
"""Bytes of an image's name that its pictures carry: a name may have 255 on most file systems."""


class Aggregates(str, Enum):
    vote = "vote"
    mean = "mean"


@app.command(no_args_is_help=True)
def fvit_certify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, made by fvit-export.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    sigma: Annotated[float, typer.Option(help="Noise level σ, in units of [0,1] pixels.")] = 0.25,
    n: Annotated[int, typer.Option(help="Copies of an image; with --radius or --seconds, at most.")] = 1000,
    alpha: Annotated[
        float, typer.Option(help="Probability that anything claimed of an image is false.")
    ] = 1e-3,
    top_k: Annotated[
        list[int] | None, typer.Option(help="Explanation size k, in tokens; 10 unless told. May be repeated.")
    ] = None,
    beta: Annotated[float, typer.Option(help="Share of the top k that must survive.")] = 0.8,
    radius: Annotated[
        float | None, typer.Option(help="Only decide whether this ℓ2 radius holds, with at most n copies.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Refine each image's certificate for so long, or up to n copies.")
    ] = None,
    aggregate: Annotated[
        Aggregates, typer.Option(help="Smooth top-k votes or attributions.")
    ] = Aggregates.vote,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of the noise, for replays, tests and images announced beforehand; from entropy unless "
            "told."
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Copies that a CPU core or a GPU takes at once: 4 or 64 unless told, or what its plans were "
            "built for; auto measures which is the fastest."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, openvino, cuda:0, ort-tensorrt:0, tensorrt:0, cuda:0,1 or auto.")
    ] = "cpu",
    out: Annotated[Path | None, typer.Option(help=f"Folder for {NAME} and a PNG an image.")] = None,
    save_input: Annotated[
        bool, typer.Option("--save-input", help="With --out: also the 8-bit picture that is certified.")
    ] = False,
    max_pixels: Annotated[
        int, typer.Option(help="Refuse larger images before they are decoded.", min=1)
    ] = MAX_PIXELS,
    n0: Annotated[int | None, typer.Option("--n0", hidden=True)] = None,
    _version: commands.VersionOption = False,
) -> None:
    """Certify what a faithful ViT says of images, and print one row an image.

    With --out, a second run skips the images that are done.
    """
    if n0 is not None:
        raise FvitError(
            "--n0 is not needed: class and tokens are chosen and certified from the same n copies, because "
            "the bounds hold for every choice at once; leave it out"
        )
    if radius is not None and seconds is not None:
        raise FvitError("--radius decides as soon as it can and --seconds refines: give one of them")
    if seconds is not None and not seconds > 0:
        raise FvitError(f"--seconds {seconds:g}: give a positive time")
    if save_input and out is None:
        raise FvitError("--save-input needs a folder: give --out")
    if out is not None:
        require("matplotlib", extra="plots", purpose="--out, which draws pictures,")
    files = find_images(images, on_skip=lambda file, reason: _say(f"{file} is skipped: {reason}"))
    with load(bundle, device=device, batch=_batch(batch)) as vit:
        commands.on_interruption(lambda: vit.queue.close(cancel=True))
        for reason in vit.passed_over:
            _say(f"not on {reason}")
        terms = vit.terms(
            sigma=sigma, n=n, alpha=alpha, k=tuple(top_k or [10]), beta=beta, radius=radius,
            aggregate=aggregate.value, seed=seed, refining=seconds is not None,
        )  # fmt: skip
        with Journal(out) if out else nullcontext() as journal:
            run = Run(
                vit, terms, files, journal, seconds=seconds, save_input=save_input,
                max_pixels=max_pixels,
            )  # fmt: skip
            try:
                run.certify()
            finally:
                run.report()
    if run.failed:
        raise typer.Exit(1)


def _batch(said: str | None) -> Batch | None:
    if said is None or said == "auto":
        return said  # type: ignore[return-value]
    try:
        return int(said)
    except ValueError:
        raise FvitError(f"batch = {said}: give a number of copies, or auto") from None


def _say(words: str, *, style: str = "") -> None:
    shown = Text(commands.one_line(words), style=style)
    problems.print(shown, soft_wrap=True)


@dataclass
class Run:
    """One invocation: what is to do, and what came of it."""

    vit: FaithfulViT
    terms: Terms
    files: list[Path]
    journal: Journal | None
    seconds: float | None
    save_input: bool
    max_pixels: int
    rows: list[Certificate] = field(default_factory=list)
    failed: int = 0
    skipped: int = 0
    _seen: dict[str, Path] = field(default_factory=dict)

    def certify(self) -> None:
        each = self.terms.n
        columns = (
            TextColumn("certifying"), BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} copies"),
            CopiesPerSecond(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(
            *columns, console=problems, transient=True, disable=not problems.is_terminal
        ) as progress:
            task = progress.add_task("", total=each * len(self.files))
            waiting: list[Picture] = []

            def pictures() -> Iterator[Picture]:
                for file in self.files:
                    picture = self._read(file)
                    if picture is None:
                        progress.update(task, total=(progress.tasks[0].total or 0) - each)
                    else:
                        waiting.append(picture)
                        yield picture

            counted = self.vit.certify_many(
                pictures(), self.terms, seconds=self.seconds,
                on_copies=lambda copies: progress.advance(task, copies),
            )  # fmt: skip
            for certificate in counted:
                self._keep(waiting.pop(0), certificate)
                # A decision may have needed fewer copies than it was allowed.
                progress.update(task, total=(progress.tasks[0].total or 0) - each + certificate.copies)

    def report(self) -> None:
        """The table of what is done, also after an interruption."""
        if self.rows:
            console.print(table(self.rows, self.terms))
        if self.skipped:
            console.print(f"{self.skipped} of them were done before and are read from {NAME}")
        if self.journal is not None and self.rows:
            folder = commands.one_line(str(self.journal.folder))
            console.print(Text(f"records and pictures are in {folder}"), soft_wrap=True)
        if self.failed:
            problems.print(f"[bold red]{self.failed} of {len(self.files)} images could not be certified[/]")

    def _read(self, file: Path) -> Picture | None:
        """The picture, or None where it is done already or cannot be read (said)."""
        size = self.vit.pipeline.image_size
        try:
            picture = read_image(file, size=size, max_pixels=self.max_pixels)
        except FvitError as error:
            _say(f"error: {error}", style="red")
            self.failed += 1
            return None
        if picture.pixels_sha256 in self._seen:
            _say(f"{file} has the pixels of {self._seen[picture.pixels_sha256]}, and is done once")
            return None
        self._seen[picture.pixels_sha256] = file
        if self.journal is not None:
            done = self.journal.find(picture, self.terms, bundle=self.vit.bundle.digest)
            if done is not None:
                self.rows.append(done)
                self.skipped += 1
                return None
        if picture.resized_from is not None:
            (rows, columns), (height, width) = picture.resized_from, size
            _say(f"{file}: resized from {columns}×{rows} to {width}×{height}, the size that radii speak of")
        if picture.frames > 1:
            _say(f"{file} has {picture.frames} frames: the first is certified")
        return picture

    def _keep(self, picture: Picture, certificate: Certificate) -> None:
        if self.journal is not None:
            self._draw(picture, certificate, self.journal.folder)
            self.journal.append(certificate.to_dict())
        self.rows.append(certificate)

    def _draw(self, picture: Picture, certificate: Certificate, folder: Path) -> None:
        # The picture goes before the record: a record that is there then implies its picture.
        from fvit.runtime.pictures import write_picture, written_whole

        # As long as a file system lets a name be, with what is added to it.
        name = os.fsdecode(os.fsencode(Path(picture.name).stem)[:LONGEST_STEM])
        stem = f"{name}-{picture.pixels_sha256[:8]}"
        try:
            write_picture(self.vit, picture, certificate, file=folder / f"{stem}.png")
            if self.save_input:
                with written_whole(folder / f"{stem}-input.png") as part:
                    Image.fromarray(picture.pixels.transpose(1, 2, 0)).save(part, format="png")
        except OSError as error:
            raise FvitError(f"cannot write a picture to {folder}: {error.strerror}") from error


class CopiesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} copies/s" if task.speed else "")


def table(rows: list[Certificate], terms: Terms) -> Table:
    """One row a record; radii are ℓ2, and a dash stands for abstention."""
    title = (
        f"σ = {terms.sigma:g}, n = {terms.n:,}, α = {terms.alpha:g}, "
        f"k = {', '.join(map(str, terms.k))}, β = {terms.beta:g}, {terms.aggregate}"
    )
    drawn = Table(title=title)
    drawn.add_column("image", overflow="fold", min_width=10)
    drawn.add_column("class")
    attentions = [f"attention k={k}" for k in terms.k] if len(terms.k) > 1 else ["attention radius"]
    for heading in ("share", "class radius", *attentions, "copies", "seconds"):
        drawn.add_column(heading, justify="right")
    if terms.radius is not None:
        drawn.add_column(f"at radius {terms.radius:g}", no_wrap=True)
    for row in rows:
        of_class, decision = row.class_, row.decision
        drawn.add_row(
            Text(commands.one_line(Path(row.image).stem)),
            "abstains" if of_class.abstained else Text(commands.one_line(of_class.label)),
            f"{100 * of_class.counts.get(str(of_class.index), 0) / row.copies:.1f} %",
            _radius(of_class),
            *map(_radius, row.attentions),
            f"{row.copies:,}",
            f"{row.seconds:.1f}",
            *([] if decision is None else [decision.answer]),
        )
    return drawn


def _radius(claim: ClassClaim | AttentionClaim) -> str:
    return "–" if claim.abstained else f"{claim.radius_l2:.3f}"
