"""fvit-evaluate: how right, how certain and how faithful a bundle is on a data set, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from fvit import commands
from fvit.certificates.terms import MOST_COPIES
from fvit.errors import FvitError
from fvit.evaluation.adversarial import STEP_COPIES
from fvit.evaluation.evaluate import NAME, Evaluation
from fvit.evaluation.judging import FEWEST
from fvit.evaluation.keeping import Asked, Kept, engine_of
from fvit.evaluation.layouts import find_data
from fvit.evaluation.tables import in_short
from fvit.extras import require_export
from fvit.runtime.decoding import MAX_PIXELS
from fvit.runtime.faithful import terms_of
from fvit.runtime.journal import Journal
from fvit.runtime.loading import ON_CPU, load
from fvit.runtime.run import Told

app = typer.Typer(add_completion=False)
console = Console()
problems = Console(stderr=True)

ATTACK_STEPS = 10


@app.command(no_args_is_help=True)
def fvit_evaluate(
    bundle: commands.BundleArgument,
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder with a folder a class, with images and masks, or of COCO or Cityscapes; a CSV "
            "with columns file, label, mask; ImageNet-Segmentation's .mat; an instances file of COCO."
        ),
    ],
    out: Annotated[Path, typer.Option(help=f"Folder for {NAME} and what it rests on.")],
    limit: Annotated[
        int | None, typer.Option(help="So many of the images at most, drawn once for all.", min=1)
    ] = None,
    sigma: Annotated[float, typer.Option(help="Noise level σ, in units of [0,1] pixels.")] = 0.25,
    n: Annotated[int, typer.Option(help="Copies of an image.")] = 1000,
    alpha: Annotated[
        float, typer.Option(help="Probability that anything claimed of an image is false.")
    ] = 1e-3,
    top_k: Annotated[int, typer.Option(help="Explanation size k, in tokens.")] = 10,
    beta: Annotated[float, typer.Option(help="Share of the top k that must survive.")] = 0.8,
    perturbed_n: Annotated[
        int,
        typer.Option(
            help="Copies of an image that lacks tokens, for the smoothed model; 0 asks the plain one alone.",
            min=0,
            max=MOST_COPIES,
        ),
    ] = 16,
    adversarial: Annotated[
        bool,
        typer.Option("--adversarial", help="Attack every image too, with gradients: needs fvit[export]."),
    ] = False,
    attack_steps: Annotated[
        int | None,
        typer.Option(help=f"Steps of each attack: {ATTACK_STEPS} unless told.", min=1, max=MOST_COPIES),
    ] = None,
    classifier_weights: Annotated[
        Path | None,
        typer.Option(help="To attack: the checkpoint that the classifier was exported from, if any."),
    ] = None,
    denoiser: Annotated[
        str | None,
        typer.Option(help="To attack: what the denoiser was exported from, as fvit-export model takes it."),
    ] = None,
    adm_flags: Annotated[
        str | None, typer.Option(help="To attack: the denoiser's, as fvit-export model takes them.")
    ] = None,
    null_class: Annotated[
        int | None, typer.Option(help="To attack: the denoiser's, as fvit-export model takes it.", min=0)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the noise, for data announced beforehand; from entropy unless told."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Copies that a CPU core or a GPU takes at once: 4 (by OpenVINO 8) or 64 unless told."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="As for fvit-certify.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what goes wrong.")] = False,
    max_pixels: Annotated[
        int, typer.Option(help="Refuse larger images before they are decoded.", min=1)
    ] = MAX_PIXELS,
    _version: commands.VersionOption = False,
) -> None:
    """Evaluate an FViT on a data set: accuracy and certified accuracy, deletion and insertion, segmentation.

    A run that was stopped goes on where it was.
    """
    if 0 < perturbed_n < FEWEST:
        raise FvitError(f"--perturbed-n {perturbed_n} says nothing: give {FEWEST} copies or more, or 0")
    if adversarial:
        require_export("--adversarial")
    to_attack = {
        "--classifier-weights": classifier_weights, "--denoiser": denoiser, "--adm-flags": adm_flags,
        "--null-class": null_class, "--attack-steps": attack_steps,
    }  # fmt: skip
    if not adversarial and (useless := [name for name, value in to_attack.items() if value is not None]):
        raise FvitError(f"{', '.join(useless)}: of attacks, which --adversarial asks for")
    steps = attack_steps or ATTACK_STEPS
    told = Told(console, problems, quiet=quiet)
    with load(bundle, device=device, batch=batch) as vit:
        commands.on_interruption(lambda: vit.queue.close(cancel=True))
        terms = terms_of(vit.bundle.manifest, sigma=sigma, n=n, alpha=alpha, k=top_k, beta=beta, seed=seed)
        adversary = None
        if adversarial:
            import torch

            from fvit.export.attacking import Adversary

            # Gradients on a GPU where copies are computed on one too.
            on_gpu = vit.engine["device"] not in ON_CPU and torch.cuda.is_available()
            adversary = Adversary.of(
                vit.bundle, weights=classifier_weights, denoiser=denoiser, adm_flags=adm_flags,
                null_class=null_class, steps=steps, copies=STEP_COPIES, device="cuda" if on_gpu else "cpu",
            )  # fmt: skip
        found = find_data(
            data, names=vit.bundle.manifest.labels,
            on_skip=lambda file, reason: told.note(f"{file} is skipped: {reason}"),
        )  # fmt: skip
        told.note(f"{data}: {found.layout}, {len(found.samples):,} images")
        asked = Asked(
            bundle=vit.bundle.digest, engine=engine_of(vit.engine), sigma=terms.sigma, n=terms.n,
            alpha=terms.alpha, k=top_k, beta=terms.beta, perturbed_n=perturbed_n,
            attack_steps=steps if adversarial else None, seed=terms.seed,
        )  # fmt: skip
        with Journal(out) as journal, Kept(out, asked) as kept:
            evaluation = Evaluation(
                vit, found, terms, journal, kept, told, limit=limit, max_pixels=max_pixels,
                stopped=commands.interrupted, adversary=adversary,
            )  # fmt: skip
            try:
                evaluation.run()
            finally:
                _report(evaluation, told)
    if evaluation.counted.failed:
        raise typer.Exit(1)


def _report(evaluation: Evaluation, told: Told) -> None:
    """The tables of what is done, also after an interruption."""
    if not evaluation.counted.evaluated:
        return
    found = evaluation.tables()
    evaluation.write(found)
    if not told.quiet:
        told.console.print(in_short(found, sigma=evaluation.terms.sigma))
        file = commands.one_line(str(evaluation.journal.folder / NAME))
        told.console.print(Text(f"everything is in {file}"), soft_wrap=True)
