"""fvit-export: make a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fvit import commands
from fvit.errors import FvitError
from fvit.extras import require

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Turn a ViT and a denoiser into a bundle.")
console = Console()

BundleArgument = Annotated[Path, typer.Argument(help="Folder to write the bundle to.")]


@app.command()
def demo(bundle: BundleArgument) -> None:
    """Export the embedded FViT: cluttered digits, 64x64, ten classes."""
    _require()
    from fvit.export.bundles import export_demo

    with console.status("exporting the embedded model"):
        errors = export_demo(bundle)
    _report(bundle, errors)


@app.command()
def model(
    bundle: BundleArgument,
    classifier: Annotated[str, typer.Option(help="Name of a timm model; see fvit-export list.")],
    denoiser: Annotated[
        str,
        typer.Option(
            help="A diffusers folder or hub name (UNet2DModel and scheduler), or a checkpoint file of "
            "guided-diffusion or improved-diffusion."
        ),
    ],
    classifier_weights: Annotated[
        Path | None, typer.Option(help="A local checkpoint (.safetensors, or .pth with tensors only).")
    ] = None,
    pretrained: Annotated[bool, typer.Option(help="Load timm's pretrained weights.")] = True,
    explanation: Annotated[
        str, typer.Option(help="attention, rollout, gradcam or gradient-rollout.")
    ] = "attention",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the copies; the denoiser's training size unless told.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="A text file with one class label a line.")] = None,
    adm_flags: Annotated[
        str | None,
        typer.Option(
            help="Training flags of a guided-diffusion or improved-diffusion checkpoint, in quotes, as its "
            "authors print them; not needed for 256x256_diffusion_uncond.pt."
        ),
    ] = None,
) -> None:
    """Export a timm ViT behind a diffusion denoiser."""
    _require()
    from fvit.export.adm import load_adm
    from fvit.export.bundles import export_bundle
    from fvit.export.classifiers import class_labels, load_classifier
    from fvit.export.denoisers import load_diffusers

    is_file = Path(denoiser).is_file()
    if adm_flags is not None and not is_file:
        raise FvitError(f"--adm-flags describe a checkpoint file, and '{denoiser}' is none")
    with console.status(f"loading {classifier} and {denoiser}"):
        loaded = load_classifier(classifier, weights=classifier_weights, pretrained=pretrained)
        named = class_labels(loaded, file=labels)
        diffusion = load_adm(Path(denoiser), flags=adm_flags) if is_file else load_diffusers(denoiser)
    with console.status(f"exporting {classifier} behind {denoiser}"):
        errors = export_bundle(
            bundle,
            classifier=loaded,
            classifier_name=classifier,
            labels=named,
            diffusion=diffusion,
            denoiser_name=denoiser,
            explanation=explanation,
            image_size=image_size,
        )
    _report(bundle, errors)


@app.command("list")
def list_models() -> None:
    """Name the families of classifiers that export, with timm's models of each."""
    _require()
    import timm

    from fvit.export.classifiers import FAMILIES

    for family, words in FAMILIES.items():
        module = family.__module__.rpartition(".")[2]
        console.print(f"[bold]{words}[/]")
        console.print("  " + ", ".join(timm.list_models(module=module)), highlight=False)


def _require() -> None:
    for module in ("torch", "timm", "diffusers", "onnx", "onnxscript"):
        require(module, extra="export", purpose="fvit-export")


def _report(bundle: Path, errors: dict[str, float]) -> None:
    for graph, error in errors.items():
        console.print(f"{graph:<16} max relative error against torch {error:.1e}")
    console.print(f"bundle written to {bundle}")


def main() -> None:
    commands.run(app)
