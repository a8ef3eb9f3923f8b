"""A bundle's denoiser -> a bundle with a small student in its place (docs/denoisers.md)."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from fvit.engines.base import weights_file
from fvit.engines.opening import open_engine
from fvit.errors import FvitError
from fvit.export.bundles import ROWS, Exported, noisy_example, quantise_graphs
from fvit.export.calibration import IMAGES, denoiser_feeds
from fvit.export.comparing import Asked, HeldOut, compare
from fvit.export.graphs import export_graph
from fvit.export.precision import precision_of
from fvit.export.students import DATA_STD, Shape, Student, shape_of
from fvit.export.training import (
    FILES,
    Files,
    Images,
    Settings,
    described,
    is_first,
    names_of,
    split,
    train,
    work_of,
)
from fvit.runtime.bundle import (
    CLASSIFIER,
    DENOISER,
    Bundle,
    Manifest,
    Origin,
    check_place,
    open_bundle,
    seal,
    write_bundle,
)

LEAST = 64
"""Images without which nothing is trained."""

Teacher = Callable[[Tensor, Tensor], Tensor]
"""(noisy [B,3,H,W], sigma [B]) -> images [B,3,h,w] in [0,1]."""


@dataclass(frozen=True, kw_only=True)
class StudentAsked(Asked):
    """size: of the student; share: the teacher's in the loss."""

    size: str = "base"
    share: float = 0.5


def distill_bundle(
    folder: str | os.PathLike[str],
    out: Path,
    *,
    images: Path,
    asked: StudentAsked,
    settings: Settings,
    console: Console,
) -> dict[str, Exported]:
    """Train a student on a folder of images, write its bundle, and measure both bundles.

    Checkpoints lie in a sibling of `out` called `<out>.training`, which is gone on with where it is there.
    Raises FvitError for what cannot be read, trained on or written.
    """
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    check_place(out, made_from=bundle)
    precision = precision_for(bundle, asked.precision)
    shape = shape_of(size=asked.size, image_size=manifest.image_size, sigmas=asked.sigmas)
    known = manifest.schedule.sigmas
    if asked.share and not manifest.schedule.covers(shape.lowest, shape.highest):
        raise FvitError(
            f"the teacher knows σ from {known[0]:.4f} to {known[-1]:.4g}, not from {shape.lowest:g} to "
            f"{shape.highest:g}: give --sigmas inside, or --share 0"
        )
    with begun(bundle, out, images=images, asked=asked, seed=settings.seed, console=console) as start:
        student, losses = train_student(
            shape,
            start.images,
            settings,
            size=manifest.image_size,
            output_size=manifest.classifier_size,
            work=start.work,
            console=console,
            teacher=teacher_of(bundle, device=asked.device) if asked.share else None,
            share=asked.share,
            origin=start.origin
            | {"teacher": f"{manifest.denoiser} of {bundle.digest}"}
            | ({"device": asked.device} if asked.share else {}),
        )
    if not is_first():
        return {}
    console.print(described(losses))
    report = write_student(bundle, student, out, images=start.images, precision=precision)
    compare({"teacher": bundle, "student": open_bundle(out)}, start.held_out, console=console)
    return report


@dataclass(frozen=True, eq=False)
class Begun:
    """What a training begins with. origin: of its images, for the plan."""

    images: Files
    held_out: HeldOut
    work: Path
    origin: dict[str, str]


@contextmanager
def begun(
    bundle: Bundle, out: Path, *, images: Path, asked: Asked, seed: int, console: Console
) -> Iterator[Begun]:
    """The images of a folder, all of them read once, and the place of the checkpoints, which no other
    training uses meanwhile. Raises FvitError as split, HeldOut.of, work_of and Files.check do."""
    size = bundle.manifest.image_size
    training, others = split(images, held_out=asked.held_out, least=LEAST, seed=seed)
    held_out = HeldOut.of(bundle, others, images=images, asked=asked)
    with work_of(out) as work:
        Files([*training, *others], size=size).check(work=work, console=console)
        yield Begun(Files(training, size=size), held_out, work, {FILES: names_of(training, images)})


class Guessing(nn.Module):
    """A student's unclipped guess as a module's forward, which is what several GPUs share out."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, noisy: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
        return self.student.guess(noisy, sigma, timestep)


def precision_for(bundle: Bundle, name: str | None) -> str:
    """The precision of a bundle made from this one: its own unless told, or int8 from fp32.

    Raises FvitError for any other."""
    own = bundle.manifest.precision
    if name is None:
        return own
    if precision_of(name) != own and (own, name) != ("fp32", "int8"):
        raise FvitError(
            f"a bundle in {own} cannot become one in {name}: keep {own}, or start from a bundle in fp32"
        )
    return name


def teacher_of(bundle: Bundle, *, device: str) -> Teacher:
    """The bundle's denoiser graph, whatever it was exported from."""
    engine = open_engine(bundle.denoiser, device=device, precision=bundle.manifest.precision)
    schedule = bundle.manifest.schedule

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        levels = sigma.cpu().numpy()
        feeds = {"noisy": noisy.cpu().numpy(), "sigma": levels, "timestep": schedule.timestep(levels)}
        found = engine.run({name: np.asarray(each, np.float32) for name, each in feeds.items()})
        return torch.from_numpy(found["images"]).to(noisy.device)

    return denoise


def train_student(
    shape: Shape,
    images: Images,
    settings: Settings,
    *,
    size: tuple[int, int],
    output_size: tuple[int, int],
    work: Path,
    console: Console,
    teacher: Teacher | None = None,
    share: float = 0.0,
    origin: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Student, list[float]]:
    """A student of this shape for images of `size`, and the loss of every step.

    The loss of a copy, drawn at a σ that is log-uniform in the shape's range: (1 − share) times the squared
    error against the clean image plus share times that against the teacher's output, in [-1,1], by Karras et
    al.'s weight 1/c_out². origin: what else makes this training what it is, for the plan. Raises FvitError as
    train does.
    """
    torch.manual_seed(settings.seed)
    student = Student(shape).resized(size, output_size)
    student.network.to(memory_format=torch.channels_last)
    ratio = math.log(shape.highest / shape.lowest)

    def loss(model: nn.Module, pixels: Tensor, draw: torch.Generator) -> Tensor:
        clean = pixels.float() / 255
        timestep = torch.rand(len(pixels), generator=draw).to(pixels.device)
        sigma = shape.lowest * torch.exp(ratio * timestep)
        noise = torch.randn(clean.shape, generator=draw).to(pixels.device)
        noisy = clean + sigma[:, None, None, None] * noise
        guess = model(noisy, sigma, timestep)
        errors = (guess - (2 * clean - 1)).square().mean(dim=(1, 2, 3))
        if teacher is not None and share > 0:
            given = 2 * student.resize((guess + 1) / 2) - 1
            against = (given - (2 * teacher(noisy, sigma) - 1)).square().mean(dim=(1, 2, 3))
            errors = (1 - share) * errors + share * against
        level = 2 * sigma
        return ((level**2 + DATA_STD**2) / (level * DATA_STD) ** 2 * errors).mean()

    plan = {"student": shape.to_dict(), "share": share, **origin}
    losses = train(Guessing(student), loss, images, settings, work=work, plan=plan, console=console)
    return student.cpu().to(memory_format=torch.contiguous_format).eval(), losses


def write_student(
    bundle: Bundle, student: Student, out: Path, *, images: Images, precision: str
) -> dict[str, Exported]:
    """The bundle with the student in its denoiser's place; the classifier is the bundle's own graph.

    precision: as precision_for gives it; int8 is calibrated on the first of the images. Raises FvitError as
    export_bundle does; then nothing is left behind.
    """
    manifest = bundle.manifest
    student = student.resized(manifest.image_size, manifest.classifier_size)
    schedule = student.shape.schedule
    example = noisy_example(schedule, size=manifest.image_size, draw=torch.Generator().manual_seed(0))
    changed = manifest.model_copy(
        update={
            "denoiser": f"fvit-student-{student.shape.width}",
            "teacher": Origin(name=manifest.denoiser, bundle=bundle.digest),
            "precision": precision,
            "prediction": "sample",
            "alphas_cumprod": tuple(schedule.alphas_cumprod.tolist()),
            "fractional_timesteps": True,
        }
    )
    with write_bundle(out) as temporary:
        graph = temporary / DENOISER
        half = precision == "fp16"
        report = {
            DENOISER: Exported(export_graph(student, example, outputs=("images",), graph=graph, half=half))
        }
        finish(bundle, temporary, changed, report, images=images)
    return report


def finish(
    bundle: Bundle, folder: Path, manifest: Manifest, report: dict[str, Exported], *, images: Images
) -> None:
    """Complete and seal the folder of a new bundle that has one new graph, which is the report's: the other
    is the bundle's own. Where the new bundle is int8 the new graph becomes that, and the other too where the
    bundle was in fp32, calibrated on the first of the images."""
    new = next(iter(report))
    graph = bundle.classifier if new == DENOISER else bundle.denoiser
    for file in {graph.name, weights_file(graph).name} & bundle.manifest.files.keys():
        shutil.copyfile(bundle.folder / file, folder / file)
    if manifest.precision == "int8":
        pixels = images[torch.arange(min(IMAGES, len(images)))].numpy()
        feeds = denoiser_feeds(pixels, manifest.schedule, rows=ROWS)
        graphs = (DENOISER, CLASSIFIER) if bundle.manifest.precision == "fp32" else (new,)
        quantise_graphs(folder, report, feeds, graphs=graphs)
    seal(folder, manifest)
