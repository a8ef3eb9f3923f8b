"""fvit-certify: certificates of images, as a table, as records, as pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fvit import commands
from fvit.certificates.record import Certificate, Terms
from fvit.errors import FvitError
from fvit.extras import require
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.images import Picture, find_images
from fvit.runtime.journal import NAME, Journal
from fvit.runtime.loading import Batch, load
from fvit.runtime.replay import read_records, replay

app = typer.Typer(add_completion=False)
console = Console()
problems = Console(stderr=True)


class Aggregates(str, Enum):
    vote = "vote"
    mean = "mean"


@app.command(no_args_is_help=True)
def fvit_certify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, made by fvit-export.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    sigma: Annotated[float, typer.Option(help="Noise level σ, in units of [0,1] pixels.")] = 0.25,
    n0: Annotated[int, typer.Option(help="Copies that select the class and the tokens.")] = 100,
    n: Annotated[int, typer.Option(help="Fresh copies that estimate.")] = 1000,
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
    aggregate: Annotated[
        Aggregates, typer.Option(help="Smooth top-k votes or attributions.")
    ] = Aggregates.vote,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Copies a run of the engine takes: 32 unless told, or what its plans were built for; auto "
            "measures which is the fastest."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda:0, ort-tensorrt:0, tensorrt:0, cuda:0,1 or auto.")
    ] = "cpu",
    out: Annotated[Path | None, typer.Option(help=f"Folder for {NAME} and a PNG an image.")] = None,
    replay_file: Annotated[
        Path | None,
        typer.Option("--replay", help=f"A {NAME}: draw its records again, on their own terms, and compare."),
    ] = None,
) -> None:
    """Certify what a faithful ViT says of images, and print one row an image.

    With --out, a second run skips the images that are done. With --replay, the records' own terms
    count and the other options but --batch and --device do not.
    """
    if out is not None:
        require("matplotlib", extra="plots", purpose="--out, which draws pictures,")
    vit = load(bundle, device=device, batch=_batch(batch))
    for reason in vit.passed_over:
        console.print(f"[dim]not on {reason}[/]", highlight=False, soft_wrap=True)
    if replay_file is not None:
        replay_all(vit, read_records(replay_file), find_images(images))
        return
    terms = Terms(
        sigma=sigma, n0=n0, n=n, alpha=alpha, k=tuple(top_k or [10]), beta=beta, aggregate=aggregate.value,
        seed=seed, radius=radius, batch=vit.batch,
    )  # fmt: skip
    vit.check(terms)
    run = Run(vit, terms, find_images(images), Journal(out) if out else None)
    try:
        run.certify()
    finally:
        run.report()
    if run.failed:
        raise typer.Exit(1)


def _batch(said: str | None) -> Batch | None:
    if said is None:
        return None
    if said == "auto":
        return "auto"
    if not said.lstrip("-").isdecimal():
        raise FvitError(f"batch = {said}: give a number of copies, or auto")
    return int(said)


@dataclass
class Run:
    """One invocation: what is to do, and what came of it."""

    vit: FaithfulViT
    terms: Terms
    files: list[Path]
    journal: Journal | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0
    skipped: int = 0

    def certify(self) -> None:
        each = self.terms.n0 + self.terms.n
        columns = (
            TextColumn("certifying"), BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} copies"),
            CopiesPerSecond(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=problems, transient=True) as progress:
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
                pictures(), self.terms, on_copies=lambda copies: progress.advance(task, copies)
            )
            for certificate in counted:
                self._keep(waiting.pop(0), certificate)
                # A decision may have needed fewer copies than it was allowed.
                progress.update(task, total=(progress.tasks[0].total or 0) - each + certificate.copies_drawn)

    def report(self) -> None:
        """The table of what is done, also after an interruption."""
        if self.rows:
            console.print(table(self.rows, self.terms))
        if self.skipped:
            console.print(f"{self.skipped} of them were done before and are read from {NAME}")
        if self.journal is not None and self.rows:
            console.print(f"records and pictures are in {self.journal.folder}")
        if self.failed:
            problems.print(f"[bold red]{self.failed} of {len(self.files)} images could not be certified[/]")

    def _read(self, file: Path) -> Picture | None:
        """The picture, or None where it is done already or cannot be read (said)."""
        try:
            picture = self.vit.read(file)
        except FvitError as error:
            problems.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            self.failed += 1
            return None
        if self.journal is not None:
            record = self.journal.find(picture, self.terms, bundle=self.vit.bundle.digest)
            if record is not None:
                self.rows.append(record)
                self.skipped += 1
                return None
        if picture.resized_from is not None:
            (rows, columns), (height, width) = picture.resized_from, self.vit.pipeline.image_size
            problems.print(
                f"{file}: resized from {columns}×{rows} to {width}×{height}, the size that radii speak of",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
        return picture

    def _keep(self, picture: Picture, certificate: Certificate) -> None:
        record = certificate.to_dict()
        if self.journal is not None:
            self._draw(picture, certificate, self.journal.folder)
            self.journal.append(record)
        self.rows.append(record)

    def _draw(self, picture: Picture, certificate: Certificate, folder: Path) -> None:
        # The picture goes before the record: a record that is there then implies its picture.
        from fvit.runtime.pictures import write_picture

        try:
            file = folder / f"{Path(picture.name).stem}-{picture.sha256[:8]}.png"
            write_picture(self.vit, picture, certificate, file=file)
        except OSError as error:
            raise FvitError(f"cannot write a picture to {folder}: {error.strerror}") from error


class CopiesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} copies/s" if task.speed else "")


def table(rows: list[dict[str, Any]], terms: Terms) -> Table:
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
        of_class = row["class"]
        drawn.add_row(
            Path(row["image"]).stem,
            "abstains" if of_class["abstained"] else of_class["label"],
            f"{100 * of_class['count'] / (row['copies_drawn'] - row['n0']):.1f} %",
            _radius(of_class),
            *map(_radius, row.get("explanations", [row["attention"]])),
            f"{row['copies_drawn']:,}",
            f"{row['seconds']:.1f}",
            *([row["decision"]["answer"]] if "decision" in row else []),
        )
    return drawn


def _radius(claim: dict[str, Any]) -> str:
    return "–" if claim["abstained"] else f"{claim['radius_l2']:.3f}"


def replay_all(vit: FaithfulViT, records: list[dict[str, Any]], files: list[Path]) -> None:
    """Replay every record whose image is among the files; exit code 1 unless all claims hold."""
    by_hash = {picture.sha256: picture for picture in map(vit.read, files)}
    drawn = Table(title=f"replayed at batch {vit.batch} on {vit.engine['name']} {vit.engine['precision']}")
    drawn.add_column("image", overflow="fold")
    for heading in (
        "counts, tokens, radii",
        "class",
        "net copies moved",
        "class radius",
        "attention radius",
        "claims",
    ):
        drawn.add_column(heading)
    good = True
    for record in records:
        name, picture = Path(record["image"]).name, by_hash.get(record["sha256"])
        if picture is None:
            drawn.add_row(name, "image not given", *[""] * 5)
            good = False
            continue
        result = replay(vit, record, picture)
        good &= result.holds
        drawn.add_row(
            name,
            "identical" if result.identical else "differ",
            _change(record["class"]["label"], result.found["class"]["label"]),
            "–" if result.copies_moved is None else str(result.copies_moved),
            _change(_radius(record["class"]), _radius(result.found["class"])),
            _change(_radius(record["attention"]), _radius(result.found["attention"])),
            "hold" if result.holds else "weaker here",
        )
    console.print(drawn)
    if not good:
        raise typer.Exit(1)


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def main() -> None:
    commands.run(app)
