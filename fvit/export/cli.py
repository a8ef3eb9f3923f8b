"""fvit-export: make a bundle."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fvit import commands
from fvit import demo as embedded
from fvit.engines.base import GPU_NUMBER
from fvit.errors import FvitError
from fvit.extras import require, require_export

if TYPE_CHECKING:
    from fvit.export.bundles import Exported

app = typer.Typer(add_completion=False, no_args_is_help=True)
console = Console()


@app.callback()
def _options(_version: commands.VersionOption = False) -> None:
    """Turn a ViT and a denoiser into a bundle."""


OutArgument = Annotated[Path, typer.Argument(help="Folder to write the bundle to.")]


PrecisionOption = Annotated[str, typer.Option(help="fp32, fp16 or int8.")]
ExplanationOption = Annotated[
    str,
    typer.Option(
        help="attention, rollout, gradient-attention, gradcam, gradient-rollout, attribution-rollout, "
        "lrp or transformer-attribution."
    ),
]
ExplainOption = Annotated[
    str,
    typer.Option(
        help="The class that is explained, except by attention and rollout: predicted (each copy's "
        "own), a label, or an index."
    ),
]


@app.command()
def demo(
    bundle: OutArgument,
    denoiser: Annotated[str, typer.Option(help="student, or the teacher that it stands for.")] = "student",
    classifier: Annotated[
        str, typer.Option(help="tuned (for attention), or the original that it was.")
    ] = "tuned",
    explanation: ExplanationOption = "attention",
    explain: ExplainOption = "predicted",
    precision: PrecisionOption = "fp32",
) -> None:
    """Export the embedded FViT: cluttered digits, 64x64, ten classes."""
    require_export("fvit-export")
    from fvit.demo.data import LABELS
    from fvit.export.bundles import export_demo
    from fvit.export.classifiers import class_named

    with console.status("exporting the embedded model"):
        exported = export_demo(
            bundle,
            denoiser=denoiser,
            classifier=classifier,
            explanation=explanation,
            explained=None if explain == "predicted" else class_named(LABELS, explain),
            precision=precision,
        )
    _report(bundle, exported)


@app.command()
def model(
    bundle: OutArgument,
    classifier: Annotated[str, typer.Option(help="Name of a timm model; see fvit-export list.")],
    denoiser: Annotated[
        str,
        typer.Option(
            help="A diffusers folder or hub name (UNet2DModel and scheduler), a checkpoint file of "
            "guided-diffusion or improved-diffusion, or module:callable, which makes a Restoration."
        ),
    ],
    classifier_weights: Annotated[
        Path | None, typer.Option(help="A local checkpoint (.safetensors, or .pth with tensors only).")
    ] = None,
    pretrained: Annotated[bool, typer.Option(help="Load timm's pretrained weights.")] = True,
    explanation: ExplanationOption = "attention",
    explain: ExplainOption = "predicted",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the copies; the denoiser's training size unless told.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="A text file with one class label a line.")] = None,
    precision: PrecisionOption = "fp32",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of images that int8 is calibrated on; the demo's unless told."),
    ] = None,
    adm_flags: Annotated[
        str | None,
        typer.Option(
            help="Training flags of a guided-diffusion or improved-diffusion checkpoint, in quotes, as its "
            "authors print them; not needed for 256x256_diffusion_uncond.pt."
        ),
    ] = None,
    null_class: Annotated[
        int | None,
        typer.Option(help="The class of a class-conditional diffusers model that stands for none.", min=0),
    ] = None,
) -> None:
    """Export a timm ViT behind a denoiser."""
    require_export("fvit-export")
    from fvit.export.bundles import export_bundle
    from fvit.export.classifiers import class_labels, class_named, load_classifier
    from fvit.export.loading import load_denoiser

    with console.status(f"loading {classifier} and {denoiser}"):
        loaded = load_classifier(classifier, weights=classifier_weights, pretrained=pretrained)
        named = class_labels(loaded, file=labels)
        source = load_denoiser(denoiser, adm_flags=adm_flags, null_class=null_class)
    with console.status(f"exporting {classifier} behind {denoiser}") as status:
        exported = export_bundle(
            bundle,
            classifier=loaded,
            classifier_name=classifier,
            labels=named,
            denoiser=source,
            denoiser_name=denoiser,
            explanation=explanation,
            explained=None if explain == "predicted" else class_named(named, explain),
            image_size=image_size,
            precision=precision,
            calibration=calibration,
            on_progress=status.update,
        )
    _report(bundle, exported)


ImagesOption = Annotated[
    Path, typer.Option(help="Folder of images like those to be certified, searched with all folders in it.")
]
HoursOption = Annotated[float, typer.Option(help="How long to train, unless --steps are told.", min=1e-6)]
TrainingStepsOption = Annotated[int | None, typer.Option(help="Optimiser steps.", min=1)]
TrainingBatchOption = Annotated[int, typer.Option(help="Images a step.", min=1)]
TrainingSeedOption = Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=2**63 - 1)]
MixedOption = Annotated[
    str | None,
    typer.Option(
        help="Arithmetic of the training: bf16, fp16 or no (fp32); the machine's fastest unless told."
    ),
]
HeldOutOption = Annotated[int, typer.Option(help="Images kept apart to measure on in the end.", min=1)]
CopiesOption = Annotated[int, typer.Option(help="Copies of each image that is measured.", min=1)]
LabelsOption = Annotated[
    str | None,
    typer.Option(help="'folders', or a CSV; what the bundle says of the clean image is right unless told."),
]
MasksOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder with a mask for each image, under its name: also how much of explanations is on objects."
    ),
]
GraphsOption = Annotated[
    str,
    typer.Option(
        help="Of the bundle's own graphs, in the loss and in what is measured: cpu, openvino, cuda:N or "
        "ort-tensorrt:N. "
        "Training itself takes the GPUs that torch sees."
    ),
]
BundlePrecisionOption = Annotated[
    str | None, typer.Option(help="The bundle's own unless told; int8 from a bundle in fp32.")
]


@app.command()
def distill(
    bundle: commands.BundleArgument,
    out: OutArgument,
    images: ImagesOption,
    size: Annotated[str, typer.Option(help="tiny, small or base.")] = "base",
    sigmas: Annotated[str, typer.Option(help="Range of σ that the student will serve.")] = "0.12:1",
    share: Annotated[
        float,
        typer.Option(
            help="Of the teacher's output in the loss, against the clean image.",
            min=0,
            max=1,
            callback=commands.finite,
        ),
    ] = 0.5,
    hours: HoursOption = 1.0,
    steps: TrainingStepsOption = None,
    batch: TrainingBatchOption = 64,
    rate: Annotated[float, typer.Option(help="Peak learning rate.", min=1e-9)] = 2e-3,
    seed: TrainingSeedOption = 0,
    mixed_precision: MixedOption = None,
    precision: BundlePrecisionOption = None,
    labels: LabelsOption = None,
    masks: MasksOption = None,
    held_out: HeldOutOption = 60,
    n: CopiesOption = 320,
    device: GraphsOption = "cpu",
) -> None:
    """Train a small student in the place of a bundle's denoiser. Killed and called again, it goes on."""
    require_export("fvit-export")
    require("accelerate", extra="export", purpose="fvit-export distill")
    from fvit.export.distillation import StudentAsked, distill_bundle
    from fvit.export.training import Settings, fastest_arithmetic

    settings = Settings(
        rate=rate, batch=batch, seed=seed, steps=steps, hours=hours,
        mixed_precision=mixed_precision or fastest_arithmetic(),
    )  # fmt: skip
    asked = StudentAsked(
        size=size,
        sigmas=_range(sigmas),
        share=share,
        precision=precision,
        labels=labels,
        masks=masks,
        held_out=held_out,
        n=n,
        device=device,
    )
    _report(out, distill_bundle(bundle, out, images=images, asked=asked, settings=settings, console=console))


@app.command()
def tune(
    bundle: commands.BundleArgument,
    out: OutArgument,
    images: ImagesOption,
    classifier_weights: Annotated[
        Path | None, typer.Option(help="The checkpoint that it was exported from; timm's unless told.")
    ] = None,
    sigmas: Annotated[str, typer.Option(help="Range of σ of the copies.")] = "0.12:1",
    hours: HoursOption = 1.0,
    steps: TrainingStepsOption = None,
    batch: TrainingBatchOption = 32,
    rate: Annotated[float, typer.Option(help="Peak learning rate.", min=1e-9)] = 1.5e-4,
    seed: TrainingSeedOption = 0,
    mixed_precision: MixedOption = None,
    precision: BundlePrecisionOption = None,
    labels: LabelsOption = None,
    masks: MasksOption = None,
    held_out: HeldOutOption = 60,
    n: CopiesOption = 320,
    device: GraphsOption = "cpu",
) -> None:
    """Tune a bundle's classifier on denoised copies, so that explanations hold still; goes on as distill."""
    require_export("fvit-export")
    require("accelerate", extra="export", purpose="fvit-export tune")
    from fvit.export.training import Settings, fastest_arithmetic
    from fvit.export.tuning import TunedAsked, tune_bundle

    settings = Settings(
        rate=rate, batch=batch, seed=seed, steps=steps, hours=hours,
        mixed_precision=mixed_precision or fastest_arithmetic(),
    )  # fmt: skip
    asked = TunedAsked(
        weights=classifier_weights, sigmas=_range(sigmas), precision=precision, labels=labels,
        masks=masks, held_out=held_out, n=n, device=device,
    )  # fmt: skip
    _report(out, tune_bundle(bundle, out, images=images, asked=asked, settings=settings, console=console))


def _range(text: str) -> tuple[float, float]:
    try:
        lowest, highest = map(float, text.split(":"))
    except ValueError:
        raise FvitError(f"'{text}' is no range of σ: give one such as 0.12:1") from None
    return lowest, highest


@app.command()
def engine(
    bundle: commands.BundleArgument,
    device: Annotated[str, typer.Option(help="The GPU to build for: cuda:0 is the first.")] = "cuda:0",
    batch: Annotated[int, typer.Option(help="Copies that one run takes.", min=1)] = 64,
    workspace: Annotated[
        float, typer.Option(help="GB that a layer may use while it runs.", min=0, callback=commands.finite)
    ] = 4.0,
    verbose: Annotated[bool, typer.Option(help="Show the builder's log.")] = False,
) -> None:
    """Build TensorRT plans of a bundle for the GPU at hand, in the bundle's precision."""
    from fvit.runtime.bundle import open_bundle
    from fvit.runtime.gpu.device import Gpu
    from fvit.runtime.gpu.plans import build_plans

    if bundle == embedded.NAME:
        raise FvitError(
            "the embedded bundle stays as it is: export it with  fvit-export demo FOLDER  and build in it"
        )
    opened = open_bundle(bundle)
    kind, _, number = device.partition(":")
    if kind != "cuda" or not GPU_NUMBER.fullmatch(number):
        raise FvitError(f"unknown device '{device}': plans are built for a GPU, such as cuda:0")
    gpu = Gpu(int(number))
    with console.status("") as status:
        plans = build_plans(
            opened,
            gpu,
            batch=batch,
            workspace=int(workspace * 1e9),
            verbose=verbose,
            on_build=lambda name: status.update(f"building {name}"),
        )
    for plan in plans:
        console.print(plan, soft_wrap=True)


@app.command()
def triton(
    bundle: commands.BundleArgument,
    repository: Annotated[Path, typer.Argument(help="Triton's model repository; made where there is none.")],
    name: Annotated[str, typer.Option(help="Name of the model, and of its folder.")] = "fvit",
    device: Annotated[
        str,
        typer.Option(
            help="cpu, openvino; tensorrt, ort-tensorrt or cuda on every GPU of the server, cuda:0,1 on two."
        ),
    ] = "cpu",
) -> None:
    """Write a model of a bundle into a model repository of NVIDIA's Triton Inference Server."""
    from fvit.triton.repository import write_repository

    written = write_repository(bundle, repository, name=name, device=device)
    console.print(f"model {name} written to {written}", soft_wrap=True)


@app.command("list")
def list_models() -> None:
    """Name the families of classifiers that export, with timm's models of each."""
    require_export("fvit-export")
    import timm

    from fvit.export.classifiers import FAMILIES

    for family, words in FAMILIES.items():
        module = family.__module__.rpartition(".")[2]
        console.print(f"[bold]{words}[/]")
        console.print("  " + ", ".join(timm.list_models(module=module)), highlight=False)


def _report(bundle: Path, exported: dict[str, Exported]) -> None:
    """exported: nothing in a process that trained along with the one that writes."""
    if not exported:
        return
    for name, graph in exported.items():
        console.print(f"{name:<16} max relative error against torch {graph.error:.1e}")
        if cost := graph.int8:
            console.print(
                f"{'':<16} int8: error {cost.error:.1%} (root mean square), {len(cost.floats)} of "
                f"{cost.layers} layers left in float{': ' if cost.floats else ''}{', '.join(cost.floats)}",
                soft_wrap=True,
                markup=False,
            )
    # Linux counts in units of 1,024 bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    console.print(f"bundle written to {bundle}; peak memory {peak:.1f} GB", soft_wrap=True)
