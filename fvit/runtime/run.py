"""One invocation of fvit-certify: each image is read, certified once, kept and told."""

from __future__ import annotations

import functools
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from operator import length_hint
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from fvit import commands
from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.runtime.certifier import Certified, Certifier
from fvit.runtime.images import Picture, read_image
from fvit.runtime.journal import NAME, Journal
from fvit.runtime.summary import Summary
from fvit.runtime.table import Row, row_of, table_of
from fvit.runtime.thumbnails import FOLDER
from fvit.runtime.truth import write_truth

LONGEST_STEM = 200
"""Bytes of an image's name that its pictures carry: a name may have 255 on most file systems."""

INPUT = "-input.png"
"""How the names of pixels that were certified end."""

PICTURE = re.compile(rf".*-[0-9a-f]{{8}}(\.png|{re.escape(INPUT)})", re.DOTALL)
"""A name of either, as Run has it."""

PAGE = 500
"""Rows of a table: those of many images are several, each printed as soon as it is full."""


def results() -> Callable[[str], bool]:
    """Whether a path leads to a picture of a run: right beside a journal, or in the thumbnails beside one."""

    @functools.cache
    def has_journal(folder: str) -> bool:
        return Path(folder, NAME).is_file()

    def is_result(file: str) -> bool:
        place, name = os.path.split(file)
        above, last = os.path.split(place)
        if last == FOLDER and has_journal(above):
            return True
        return PICTURE.fullmatch(name) is not None and has_journal(place)

    return is_result


@dataclass(frozen=True)
class Told:
    """Who is told what: rows for whoever asked, notes and progress for whoever watches."""

    console: Console
    problems: Console
    quiet: bool

    def note(self, words: str) -> None:
        """What is worth knowing, unless little is to be said."""
        if not self.quiet:
            self.complain(words, style="")

    def complain(self, words: str, *, style: str = "red") -> None:
        """What went wrong."""
        self.problems.print(Text(commands.one_line(words), style=style), soft_wrap=True)


@dataclass
class Run:
    """What is to do, and what came of it. Of an image that is done no more is kept than a row, until that is
    printed, and a line of an index.

    labels: the index of each file's right class. drawn, save_input: whether the journal's folder gets a PNG
    of each certificate, and of the pixels that it speaks of.
    """

    certifier: Certifier
    terms: Terms
    files: Sequence[str]
    journal: Journal | None
    told: Told
    summary: Summary
    labels: array[int] | None
    seconds: float | None
    drawn: bool
    save_input: bool
    max_pixels: int
    _rows: list[Row] = field(default_factory=list)
    _seen: dict[bytes, int] = field(default_factory=dict)
    _resized: bool = False
    _undrawn: int = 0

    def __post_init__(self) -> None:
        self._progress = Progress(
            TextColumn("certifying"), BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} copies"),
            CopiesPerSecond(), TimeRemainingColumn(),
            console=self.told.problems, transient=True,
            disable=not self.told.problems.is_terminal or self.told.quiet,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=self.terms.n * len(self.files))

    def certify(self) -> None:
        """Every image that has no record yet."""
        watched = not self._progress.disable
        done = self.certifier.certify(
            Pictures(self), self.terms, seconds=self.seconds, drawn=self.drawn,
            on_copies=(lambda copies: self._progress.advance(self._task, copies)) if watched else None,
        )  # fmt: skip
        with self._progress, closing(done):
            for certified in done:
                self._keep(certified)
                self._takes(certified.certificate.copies)

    def report(self) -> None:
        """The table and the summary of what is done, also after an interruption."""
        console, summary = self.told.console, self.summary
        if not self.told.quiet:
            self._print_rows()
            if summary.before:
                had = "" if self.seconds is None else ", with the copies that they got then"
                console.print(f"{summary.before} of them were done before and are read from {NAME}{had}")
            if self._undrawn:
                console.print(
                    f"{self._undrawn} of those have no picture: they are drawn where they are certified, "
                    "with another --out"
                )
            if summary.records and summary.asked:
                console.print(summary.table())
            if self.journal is not None and summary.records:
                some = self.drawn and self._undrawn < summary.records
                what = "records and pictures are" if some else "records are"
                folder = commands.one_line(str(self.journal.folder))
                console.print(Text(f"{what} in {folder}"), soft_wrap=True)
        if summary.failed:
            self.told.problems.print(
                f"[bold red]{summary.failed} of {summary.images} images could not be certified[/]"
            )

    def keep_labels(self) -> None:
        """Beside the records, the right classes of their images; raises FvitError where that fails."""
        if self.journal is not None and self.labels is not None:
            found = ((digest.hex(), self.labels[number]) for digest, number in self._seen.items())
            write_truth(self.journal.folder, found, names=self.certifier.bundle.manifest.labels)

    def _print_rows(self) -> None:
        if self._rows:
            self.told.console.print(table_of(self._rows, self.terms))
            self._rows.clear()

    def _takes(self, copies: int) -> None:
        """An image takes so many copies, and not as many as it might."""
        total = self._progress.tasks[0].total or 0
        self._progress.update(self._task, total=total - self.terms.n + copies)

    def read(self, number: int) -> Picture | None:
        """The picture of a file, or None where it is done already or cannot be read (said)."""
        picture = self._picture(number, self.files[number])
        if picture is None:
            self._takes(0)
        return picture

    def _picture(self, number: int, file: str) -> Picture | None:
        size = self.certifier.bundle.manifest.image_size
        try:
            picture = read_image(file, size=size, max_pixels=self.max_pixels)
        except FvitError as error:
            self.told.complain(f"error: {error}")
            self.summary.failed += 1
            return None
        first = self._seen.setdefault(bytes.fromhex(picture.pixels_sha256), number)
        if first != number:
            self.told.note(f"{file} has the pixels of {self.files[first]}, and is done once")
            self.summary.repeated += 1
            return None
        if self.journal is not None:
            done = self.journal.find(picture, self.terms, bundle=self.certifier.bundle.digest)
            if done is not None:
                # Not by the picture's own name, which is that of the file as it was called then.
                thumbnail = self.journal.folder / FOLDER / f"{picture.pixels_sha256}.webp"
                self._undrawn += self.drawn and not thumbnail.exists()
                if self.save_input and not self._place(picture, INPUT).exists():
                    self._save_input(picture)
                self._tell(picture, done, before=True)
                return None
        if picture.resized_from is not None and not self._resized:
            self._resized = True
            (rows, columns), (height, width) = picture.resized_from, size
            self.told.note(
                f"{file}: resized from {columns}×{rows} to {width}×{height}, the size that radii speak of; "
                "so is every other of another size"
            )
        if picture.animated:
            self.told.note(f"{file} has more than one frame: the first is certified")
        return picture

    def _keep(self, done: Certified) -> None:
        if self.journal is not None:
            # Pictures go before the record: a record that is there then implies its pictures.
            if self.drawn:
                with _writing(self.journal.folder):
                    done.draw(self._place(done.picture, ".png"))
            if self.save_input:
                self._save_input(done.picture)
            self.journal.append(done.certificate.to_dict())
        self._tell(done.picture, done.certificate, before=False)

    def _tell(self, picture: Picture, certificate: Certificate, *, before: bool) -> None:
        number = self._seen[bytes.fromhex(picture.pixels_sha256)]
        right = None if self.labels is None else self.labels[number]
        self.summary.add(certificate, right=right, before=before)
        if not self.told.quiet:
            self._rows.append(row_of(certificate))
        if len(self._rows) == PAGE:
            self._progress.stop()  # both may be on one terminal
            self._print_rows()
            self._progress.start()

    def _save_input(self, picture: Picture) -> None:
        from fvit.runtime.pictures import written_whole

        file = self._place(picture, INPUT)
        with _writing(file.parent), written_whole(file) as part:
            Image.fromarray(picture.pixels.transpose(1, 2, 0)).save(part, format="png")

    def _place(self, picture: Picture, ending: str) -> Path:
        """Of something drawn of a picture."""
        assert self.journal is not None
        # As long as a file system lets a name be, with what is added to it.
        name = os.fsdecode(os.fsencode(Path(picture.name).stem)[:LONGEST_STEM])
        return self.journal.folder / f"{name}-{picture.pixels_sha256[:8]}{ending}"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FvitError(f"cannot write a picture to {folder}: {error.strerror}") from error


class Pictures:
    """Those that are to be certified, each read when it is its turn; their number is at most the hint."""

    def __init__(self, run: Run) -> None:
        self._run, self._numbers = run, iter(range(len(run.files)))

    def __iter__(self) -> Pictures:
        return self

    def __next__(self) -> Picture:
        for number in self._numbers:
            if commands.interrupted():  # many may be done already
                raise CancelledError
            if (picture := self._run.read(number)) is not None:
                return picture
        raise StopIteration

    def __length_hint__(self) -> int:
        return length_hint(self._numbers)


class CopiesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} copies/s" if task.speed else "")
