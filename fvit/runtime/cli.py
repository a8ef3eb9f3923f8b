"""fvit-certify: certificates of images, as a table, as records, as pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from fvit import commands, demo
from fvit.errors import FvitError
from fvit.extras import require
from fvit.runtime import parquet
from fvit.runtime.certifier import Certifier, Here
from fvit.runtime.decoding import MAX_PIXELS
from fvit.runtime.faithful import terms_of
from fvit.runtime.inputs import find_images, listed
from fvit.runtime.journal import NAME, Journal
from fvit.runtime.labels import labels_of
from fvit.runtime.loading import Batch, load
from fvit.runtime.run import Run, Told, results
from fvit.runtime.summary import Summary, check_place

app = typer.Typer(add_completion=False)
console = Console()
problems = Console(stderr=True)

ADDRESS = re.compile(r"auto|local|\S+:\d+|\w+://\S+")
"""What --ray takes for the address of a cluster; what follows it and looks otherwise is another argument."""

SOME = ""
"""The address of a cluster that is to be found, or started."""


class Aggregates(str, Enum):
    vote = "vote"
    mean = "mean"


class Formats(str, Enum):
    jsonl = "jsonl"
    parquet = "parquet"


class Command(TyperCommand):
    """--ray may stand by itself, which typer has no word for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ends = args.index("--") if "--" in args else len(args)
        words = [
            f"--ray={SOME}"
            if word == "--ray"
            and place < ends
            and not ADDRESS.fullmatch("".join(args[place + 1 : place + 2]))
            else word
            for place, word in enumerate(args)
        ]
        return super().parse_args(ctx, words)


@app.command(no_args_is_help=True, cls=Command)
def fvit_certify(
    bundle: commands.BundleArgument,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Images, folders of images, or patterns of them; the embedded bundle has its own samples."
        ),
    ] = None,
    list_: Annotated[
        str | None,
        typer.Option("--list", help="A file that names images, one a line; - for the standard input."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Search folders in folders too.")] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The right classes, for certified accuracy: folders, where each class has its own, or a CSV "
            "with columns file and label."
        ),
    ] = None,
    at: Annotated[
        list[float] | None,
        typer.Option(help="An ℓ2 radius at which the summary says how much is certified. May be repeated."),
    ] = None,
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
            help="Copies that a CPU core or a GPU takes at once: 4 (by OpenVINO 8) or 64 unless told, or "
            "what its plans were built for; auto measures which is the fastest."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, openvino, cuda:0, ort-tensorrt:0, tensorrt:0, cuda:0,1 or auto.")
    ] = "cpu",
    out: Annotated[Path | None, typer.Option(help=f"Folder for {NAME} and a PNG an image.")] = None,
    format_: Annotated[
        Formats,
        typer.Option(
            "--format", help=f"With --out: parquet makes {parquet.NAME} of the records, at the end."
        ),
    ] = Formats.jsonl,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="With --out: records alone.")] = False,
    save_input: Annotated[
        bool, typer.Option("--save-input", help="With --out: also the 8-bit picture that is certified.")
    ] = False,
    summary: Annotated[Path | None, typer.Option(help="A file for what the run came to, as JSON.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what goes wrong.")] = False,
    max_pixels: Annotated[
        int, typer.Option(help="Refuse larger images before they are decoded.", min=1)
    ] = MAX_PIXELS,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Certify on a Ray cluster: at this address, or the one that is found, or a local one.",
        ),
    ] = None,
    cores: Annotated[
        int | None,
        typer.Option(help="With --ray: CPU cores of a worker; a node's unless told, 1 beside a GPU.", min=1),
    ] = None,
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
    if bad := [each for each in at or [] if not 0 <= each < math.inf]:
        raise FvitError(f"--at {bad[0]:g}: give a radius from 0 on")
    if save_input and out is None:
        raise FvitError("--save-input needs a folder: give --out")
    if no_pictures and out is None:
        raise FvitError("--no-pictures leaves them out of a folder: give --out")
    if format_ is Formats.parquet:
        if out is None:
            raise FvitError("--format parquet needs a folder: give --out")
        parquet.pyarrow()
    if cores is not None and ray is None:
        raise FvitError("--cores is each worker's on a cluster: give --ray")
    if summary is not None:
        check_place(summary, out=out)
    drawn = out is not None and not no_pictures
    if drawn:
        require("matplotlib", extra="plots", purpose="--out, which draws pictures,")
    told = Told(console, problems, quiet=quiet)
    places: list[str | Path] = [*(images or []), *([] if list_ is None else listed(list_))]
    if not images and list_ is None and bundle == demo.NAME:
        places = [demo.SAMPLES]
    if not places:
        raise FvitError("there is no image: name files, folders or patterns, or give a --list of them")
    files = find_images(
        places,
        recursive=recursive,
        is_result=results(),
        on_skip=lambda file, reason: told.note(f"{file} is skipped: {reason}"),
    )
    with _certifier(bundle, device=device, batch=_batch(batch), ray=ray, cores=cores, told=told) as certifier:
        manifest = certifier.bundle.manifest
        terms = terms_of(
            manifest, sigma=sigma, n=n, alpha=alpha, k=tuple(top_k or [10]), beta=beta, radius=radius,
            aggregate=aggregate.value, seed=seed, refining=seconds is not None,
        )  # fmt: skip
        right = None if labels is None else labels_of(files, labels, names=manifest.labels)
        came_to = Summary(
            terms, len(files), radii=at or [0.0, *([] if radius is None else [radius])],
            asked=bool(at) or right is not None, labelled=right is not None,
        )  # fmt: skip
        with Journal(out) if out else nullcontext() as journal:
            run = Run(
                certifier, terms, files, journal, told, came_to, right, seconds=seconds, drawn=drawn,
                save_input=save_input, max_pixels=max_pixels,
            )  # fmt: skip
            with ExitStack() as whatever_happens:  # the last is called first, and none keeps another from it
                if summary is not None:
                    whatever_happens.callback(came_to.write, summary)
                whatever_happens.callback(run.keep_labels)
                whatever_happens.callback(run.report)
                run.certify()
                if journal is not None and format_ is Formats.parquet:
                    parquet.write_parquet(journal, journal.folder / parquet.NAME)
    if came_to.failed:
        raise typer.Exit(1)


@contextmanager
def _certifier(
    bundle: str, *, device: str, batch: Batch | None, ray: str | None, cores: int | None, told: Told
) -> Iterator[Certifier]:
    """The bundle where it is to run; an interruption cancels what is under way there."""
    if ray is not None:
        from fvit.cluster.driver import Cluster

        cluster = Cluster(
            bundle, address=ray or None, device=device, batch=batch, cores=cores, note=told.note
        )
        commands.on_interruption(cluster.cancel)
        yield cluster
        return
    with load(bundle, device=device, batch=batch) as vit:
        commands.on_interruption(lambda: vit.queue.close(cancel=True))
        for reason in vit.passed_over:
            told.note(f"not on {reason}")
        yield Here(vit)


def _batch(said: str | None) -> Batch | None:
    if said is None or said == "auto":
        return said  # type: ignore[return-value]
    try:
        return int(said)
    except ValueError:
        raise FvitError(f"batch = {said}: give a number of copies, or auto") from None
