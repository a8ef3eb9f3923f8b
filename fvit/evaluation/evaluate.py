"""One invocation of fvit-evaluate: every image is read, certified, measured and kept; then come the
tables."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from threading import Event, Lock
from typing import Any, TypeVar

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fvit.certificates.bounds import fixed_bounds
from fvit.certificates.radii import class_radius
from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.evaluation.adversarial import Adversary, Attacking, broken_in
from fvit.evaluation.data import Data, Sample
from fvit.evaluation.figures import Row, Rows
from fvit.evaluation.keeping import Kept, engine_of
from fvit.evaluation.measures import MODELS, Explanation, Measures
from fvit.evaluation.measuring import explained_class, measure
from fvit.evaluation.mosaics import fours, mosaic_row
from fvit.evaluation.perturbing import mosaic
from fvit.evaluation.rows import row_of
from fvit.evaluation.tables import mosaic_tables, tables
from fvit.runtime.faithful import FaithfulViT, at_once
from fvit.runtime.images import Picture, read_image
from fvit.runtime.journal import Journal
from fvit.runtime.masks import VOID, Mask, fitted
from fvit.runtime.panels import Panels
from fvit.runtime.pictures import written_whole
from fvit.runtime.plain import classify_plain
from fvit.runtime.queue import Account
from fvit.runtime.run import Told
from fvit.runtime.thumbnails import write_thumbnail
from fvit.runtime.truth import write_truth

NAME = "evaluation.json"
MOSAICS = "mosaics"

STEP = 0.1
"""In units of σ, between the radii at which it is asked what is certified."""

Given = TypeVar("Given")
Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Seen:
    """A sample that was read. mask: [H,W] of the bundle's size, not all of it void."""

    sample: Sample
    picture: Picture
    mask: Mask | None


@dataclass
class Counted:
    """What came of the images. listed: there are so many, of which so many were chosen; failed: could not be
    read; repeated: have the pixels of one before."""

    listed: int
    chosen: int
    evaluated: int = 0
    failed: int = 0
    repeated: int = 0
    labelled: int = 0
    masked: int = 0


class Evaluation:
    """What is to do, and what came of it.

    terms: what each image is certified on, with its own seed from what is kept. journal, kept: of one folder.
    limit: so many images at most. stopped: whether to read no more of them. adversary: what attacks each,
    where that is asked.
    """

    def __init__(
        self,
        vit: FaithfulViT,
        data: Data,
        terms: Terms,
        journal: Journal,
        kept: Kept,
        told: Told,
        *,
        limit: int | None,
        max_pixels: int,
        stopped: Callable[[], bool] = lambda: False,
        adversary: Adversary | None = None,
    ) -> None:
        self.vit, self.data, self.terms, self.told = vit, data, terms, told
        self.journal, self.kept = journal, kept
        self.max_pixels, self._stopped = max_pixels, stopped
        self.samples = data.some(limit)
        self.counted = Counted(len(data.samples), len(self.samples))
        self.radii = radii_of(terms)
        self._rows, self._of_mosaics = Rows(), Rows()
        self._pointed: list[tuple[Sample, int]] = []
        self._labels: dict[str, int] = {}
        self._account = Account()
        self._given_up = Event()
        self._attacking = None
        if adversary is not None:
            self._attacking = Attacking(
                vit, adversary, journal.folder, lambda: self._stopped() or self._given_up.is_set()
            )
        # Of the journal and of what is kept, which know of one thread.
        self._lock = Lock()

    def run(self) -> None:
        """Measure every image that is not measured yet."""
        with (
            self._watched("evaluating", len(self.samples)) as advance,
            closing(self._each(self._read_all(advance), self._evaluated)) as done,
        ):
            for seen, (certificate, measures) in done:
                self._add(seen, certificate, measures)
                advance()
        if groups := self._groups():
            with (
                Journal(self.journal.folder / MOSAICS) as journal,
                self._watched("mosaics", len(groups)) as advance,
                closing(self._each(groups, lambda group: self._mosaic(group, journal))) as rows,
            ):
                for _, row in rows:
                    self._of_mosaics.add(row)
                    advance()

    def tables(self) -> dict[str, Any]:
        """Everything that the images which are done came to; at least one must be."""
        counted, manifest = self.counted, self.vit.bundle.manifest
        models = MODELS if self.kept.asked.perturbed_n else MODELS[:1]
        found: dict[str, Any] = {
            "fvit": version("fvit"),
            "bundle": self.vit.bundle.digest,
            "explanation": manifest.explanation,
            "engine": self.vit.engine,
            "labels": manifest.labels,
            "asked": self.kept.asked.model_dump(exclude_none=True, exclude={"secret", "bundle", "engine"}),
            "data": {"layout": self.data.layout, **vars(counted)},
            **tables(
                self._rows.figures(), radii=self.radii, models=models, labelled=counted.labelled > 0,
                masked=counted.masked > 0, attacked=self._attacking is not None,
            ),
        }  # fmt: skip
        if broken := broken_in(self.journal.folder):
            found["broken"] = broken
        if manifest.explained is not None:
            one = manifest.explained
            found["explained"] = manifest.labels[one] if isinstance(one, int) else one
        if len(self._of_mosaics):
            found["mosaics"] = mosaic_tables(self._of_mosaics.figures(), radii=self.radii)
        return found

    def write(self, found: dict[str, Any]) -> None:
        """Write the tables as JSON and the labels of their images, each whole or not at all; raises
        FvitError where that fails."""
        file = self.journal.folder / NAME
        write_truth(file.parent, self._labels.items(), names=self.vit.bundle.manifest.labels)
        try:
            with written_whole(file) as part:
                part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise FvitError(f"cannot write {file}: {error.strerror}") from error

    def _groups(self) -> list[list[tuple[Sample, int]]]:
        """The images of each mosaic, and their classes; none where the explanation knows no class."""
        explained = self.vit.bundle.manifest.explained
        if explained is None:
            return []
        groups = fours(self._pointed)
        return [
            group
            for group in groups
            if explained == "predicted" or explained in {index for _, index in group}
        ]

    def _read_all(self, advance: Callable[[], Any]) -> Iterator[Seen]:
        """Each image once, when it is its turn; of those that are left out it is said why."""
        first: dict[str, Sample] = {}
        for sample in self.samples:
            if self._stopped():  # many may be done already
                raise CancelledError
            try:
                seen = self._read(sample)
            except FvitError as error:
                self.told.complain(f"error: {error}")
                self.counted.failed += 1
                advance()
                continue
            known = first.setdefault(seen.picture.pixels_sha256, sample)
            if known is not sample:
                of = "is there twice" if known.name == sample.name else f"has the pixels of {known.name}"
                self.told.note(f"{sample.name} {of}, and is done once")
                self.counted.repeated += 1
                advance()
                continue
            yield seen

    def _read(self, sample: Sample) -> Seen:
        picture = self._picture(sample)
        mask = None
        if sample.mask is not None:
            size = self.vit.pipeline.image_size
            mask = fitted(sample.mask(picture.resized_from or size), size)
            if (mask == VOID).all():
                self.told.note(f"all of {sample.name}'s mask is void")
                mask = None
        return Seen(sample, picture, mask)

    def _picture(self, sample: Sample) -> Picture:
        size = self.vit.pipeline.image_size
        return replace(read_image(sample.image(), size=size, max_pixels=self.max_pixels), name=sample.name)

    def _evaluated(self, seen: Seen) -> tuple[Certificate, Measures]:
        certificate = self._certified(seen.picture, self.journal)
        with self._lock:
            measures = self.kept.find(seen.picture, seen.mask, seed=certificate.seed)
        if measures is None:
            panels = Panels.of(self.vit, seen.picture, certificate)
            write_thumbnail(panels, certificate, folder=self.journal.folder)
            measures = measure(
                self.vit, seen.picture, seen.mask, certificate, copies=self.kept.asked.perturbed_n
            )
            if self._attacking is not None:
                attacked = self._attacking.attacked(seen.picture, certificate, measures)
                measures = measures.model_copy(update={"adversarial": attacked})
            with self._lock:
                self.kept.append(measures)
        return certificate, measures

    def _certified(self, picture: Picture, journal: Journal) -> Certificate:
        asked = replace(self.terms, seed=self.kept.asked.seed)
        with self._lock:
            found = journal.find(picture, asked, bundle=self.vit.bundle.digest)
        if found is not None and (its := engine_of(found.engine.model_dump())) != self.kept.asked.engine:
            raise FvitError(
                f"{journal.file} holds a record of {found.image} by {its}, and this is "
                f"{self.kept.asked.engine}: choose another --out"
            )
        if found is None:
            terms = replace(self.terms, seed=self.kept.asked.seed_of(picture))
            found = self.vit.certifying(picture, terms, account=self._account).result()
            with self._lock:
                journal.append(found.to_dict())
        return found

    def _add(self, seen: Seen, certificate: Certificate, measures: Measures) -> None:
        label = seen.sample.label
        self._rows.add(row_of(label, certificate, measures, radii=self.radii))
        self.counted.evaluated += 1
        if label is not None:
            self.counted.labelled += 1
            self._labels[seen.picture.pixels_sha256] = label
        self.counted.masked += seen.mask is not None
        of_class = certificate.class_
        if not of_class.abstained and label in (None, of_class.index):
            self._pointed.append((seen.sample, of_class.index))

    def _mosaic(self, group: Sequence[tuple[Sample, int]], journal: Journal) -> Row:
        pixels = mosaic([self._picture(sample).pixels for sample, _ in group])
        names = ", ".join(sample.name for sample, _ in group)
        picture = replace(self.vit.read(pixels.transpose(1, 2, 0)), name=f"mosaic of {names}")
        certificate = self._certified(picture, journal)
        logits, attribution = classify_plain(self.vit, pixels[None])
        said: dict[Explanation, int] = {
            "plain": int(logits[0].argmax()),
            "smoothed": certificate.class_.index,
        }
        manifest = self.vit.bundle.manifest
        return mosaic_row(
            [index for _, index in group], certificate,
            explained={name: explained_class(manifest, index) for name, index in said.items()},
            plain=attribution[0].astype(np.float64), radii=self.radii,
        )  # fmt: skip

    def _each(
        self, given: Iterable[Given], work: Callable[[Given], Found]
    ) -> Generator[tuple[Given, Found], None, None]:
        """What is given with what came of it, in its order; some are worked on at a time."""
        most = at_once(self.terms, rows=self.vit.rows)
        under_way: deque[tuple[Given, Future[Found]]] = deque()
        with ThreadPoolExecutor(most, thread_name_prefix="fvit-evaluate") as workers:
            try:
                for each in given:
                    under_way.append((each, workers.submit(work, each)))
                    while len(under_way) >= most or (under_way and under_way[0][1].done()):
                        first, done = under_way.popleft()
                        yield first, done.result()
                for first, done in under_way:
                    yield first, done.result()
            except BaseException:
                # What is under way would write to files that are about to be closed.
                self._given_up.set()
                self.vit.queue.close(cancel=True)
                raise

    @contextmanager
    def _watched(self, words: str, total: int) -> Iterator[Callable[[], None]]:
        progress = Progress(
            TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=self.told.problems, transient=True,
            disable=not self.told.problems.is_terminal or self.told.quiet,
        )  # fmt: skip
        with progress:
            task = progress.add_task("", total=total)
            yield lambda: progress.advance(task)


def radii_of(terms: Terms) -> list[float]:
    """Every tenth of σ from 0 to beyond the largest class radius that n copies can give, which is where all
    of them agree."""
    lower, _ = fixed_bounds(terms.n, terms.n, level=terms.class_level)
    largest = class_radius(float(lower), sigma=terms.sigma)
    steps = int(largest / (STEP * terms.sigma)) + 2
    return [float(f"{step * STEP * terms.sigma:.6g}") for step in range(steps)]
