"""A bundle's classifier -> one whose explanations hold still on denoised copies (docs/denoisers.md)."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fvit.certificates.claims import top_tokens
from fvit.errors import FvitError
from fvit.export.bundles import Exported
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.comparing import Asked, Floats, HeldOut, Measured, classified, compare
from fvit.export.distillation import Teacher, begun, finish, precision_for, teacher_of
from fvit.export.graphs import export_graph
from fvit.export.rebuilding import OUTPUTS, example, rebuild
from fvit.export.training import Images, Settings, described, is_first, train, write
from fvit.runtime.bundle import CLASSIFIER, Bundle, Origin, check_place, open_bundle, write_bundle

WEIGHTS = "classifier.safetensors"
"""The tuned weights beside the checkpoints, from which the new bundle can be tuned again."""

COPIES = 2
"""Of each image in a step, at one σ."""

CLEAN = 4
"""Of so many images one is also shown clean."""

ATTRIBUTION = 0.3
"""Weight of the attribution's divergence beside the logits'."""

FIRST = 10
"""Tokens of an explanation that are to stay before all others, or all but one where there are no more: as
many as are certified unless told."""

ORDER = 54.0
"""Weight of the loss of order beside the logits' divergence."""

KEPT = 0.99
"""Share of the moving average of the weights that a step leaves as it was."""

TIED = 0.05
"""Scale of the loss of order, in logarithms of attribution."""

EVEN = 0.05
"""Of every attribution in the loss so much is spread evenly: explanations that cut at zero hold shares of
exactly 0, which have no logarithm."""


@dataclass(frozen=True, kw_only=True)
class TunedAsked(Asked):
    """weights: the checkpoint that the classifier was exported from, where it was one."""

    weights: Path | None = None


def tune_bundle(
    folder: str | os.PathLike[str],
    out: Path,
    *,
    images: Path,
    asked: TunedAsked,
    settings: Settings,
    console: Console,
) -> dict[str, Exported]:
    """Tune the classifier on a folder of images, write its bundle, and measure both bundles.

    Checkpoints as distill_bundle's. Raises FvitError for a classifier that cannot be rebuilt to be trained,
    and for what cannot be read, trained on or written.
    """
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    check_place(out, made_from=bundle)
    precision = precision_for(bundle, asked.precision)
    lowest, highest = asked.sigmas
    known = manifest.schedule.sigmas
    if not manifest.schedule.covers(lowest, highest):
        raise FvitError(
            f"the denoiser knows σ from {known[0]:.4f} to {known[-1]:.4g}, and {lowest:g}:{highest:g} is no "
            "range inside: give another --sigmas"
        )
    original = rebuild(bundle, weights=asked.weights)
    with begun(bundle, out, images=images, asked=asked, seed=settings.seed, console=console) as start:
        tuned = rebuild(bundle, weights=asked.weights)
        losses = train_classifier(
            tuned,
            original,
            start.images,
            settings,
            denoise=teacher_of(bundle, device=asked.device),
            sigmas=asked.sigmas,
            work=start.work,
            console=console,
            origin=start.origin
            | {"tuned": f"{manifest.classifier} of {bundle.digest}", "device": asked.device},
        )
        if is_first():
            write(start.work / WEIGHTS, safetensors.torch.save(tuned.weights()))
    if not is_first():
        return {}
    console.print(described(losses))
    report = write_tuned(bundle, tuned, out, images=start.images, precision=precision)
    new = open_bundle(out)
    before, after = compare({"before": bundle, "after": new}, start.held_out, console=console)
    seen = [classified(each, start.held_out.files, device=start.held_out.device) for each in (bundle, new)]
    clean = [Clean.of(*each, start.held_out, wanted=seen[0][1]) for each in seen]
    console.print(_table(clean))
    fallen = [*lost(*clean, where="on clean images")]
    for was, now in zip(before, after, strict=True):
        fallen += lost(was, now, where=f"at σ = {was.sigma:g}")
    if fallen and before[0].precision != after[0].precision:
        fallen.append(f"a part of it may be {after[0].precision}'s: before it was {before[0].precision}")
    for line in fallen:
        console.print(line)
    return report


def train_classifier(
    tuned: ExplainedClassifier,
    original: ExplainedClassifier,
    images: Images,
    settings: Settings,
    *,
    denoise: Teacher,
    sigmas: tuple[float, float],
    work: Path,
    console: Console,
    origin: Mapping[str, str] = MappingProxyType({}),
) -> list[float]:
    """Tune a copy of the original in place, and return the loss of every step.

    The loss, of COPIES denoised copies of each image at a σ that is log-uniform in the range, and of one in
    CLEAN of the images themselves: KL(p‖·) + ATTRIBUTION · KL(w‖·) + ORDER · out_of_order(v, ·), with the
    original's class probabilities p and attribution w on the clean image, and with v the mean attribution
    that the moving average of the tuned one's weights gives the image and these copies: an order is to hold
    in every copy, and which one is left to the tuned one. The denoiser stays as it is. An explanation that
    differentiates is computed in fp32, and without the loss of order: many of its shares are 0, none of
    which leads another. origin: what else makes this training what it is, for the plan. Raises FvitError as
    train does.
    """
    if tuned.needs_gradients:
        settings = dataclasses.replace(settings, mixed_precision="no")
    ratio = math.log(sigmas[1] / sigmas[0])
    averaged = None if tuned.needs_gradients else Averaged(tuned)

    def loss(model: nn.Module, pixels: Tensor, draw: torch.Generator) -> Tensor:
        original.to(pixels.device)
        clean = pixels.float() / 255
        sigma = (sigmas[0] * torch.exp(ratio * torch.rand(len(pixels), generator=draw))).to(pixels.device)
        shown, levels = resized(clean, original.size), sigma.repeat(COPIES)
        noise = torch.randn((len(levels), *clean.shape[1:]), generator=draw).to(pixels.device)
        copies = denoise(clean.repeat(COPIES, 1, 1, 1) + levels[:, None, None, None] * noise, levels)
        with torch.no_grad():
            logits, attribution = original(shown)
        asked = torch.cat([copies, shown[::CLEAN]])
        if averaged is None:
            found, spread = model(asked)
        else:
            views = torch.cat([copies, shown]).unflatten(0, (COPIES + 1, -1))
            found, spread, steady = model(asked, views)

        def target(each: Tensor) -> Tensor:
            return torch.cat([each.repeat(COPIES, 1), each[::CLEAN]]).float()

        of_class = F.kl_div(
            F.log_softmax(found.float(), dim=1), F.softmax(target(logits), dim=1), reduction="none"
        )
        of_tokens = F.kl_div(_mixed(spread).log(), _mixed(target(attribution)), reduction="none")
        rows = of_class.sum(dim=1) + ATTRIBUTION * of_tokens.sum(dim=1)
        if averaged is not None:
            rows = rows + ORDER * out_of_order(target(steady), spread)
        total: Tensor = rows[: len(copies)].mean() + rows[len(copies) :].mean()
        return total

    weights = {"copies": COPIES, "clean": CLEAN, "attribution": ATTRIBUTION, "even": EVEN}
    if averaged is not None:
        weights |= {"order": ORDER, "kept": KEPT, "first": FIRST, "tied": TIED}
    plan = {"sigmas": list(sigmas), **weights, **origin}
    # On a CPU fused attention's backward pass takes twice as long in bfloat16 as all the rest of a step.
    plain = nullcontext() if torch.cuda.is_available() else sdpa_kernel(SDPBackend.MATH)
    with plain:
        losses = train(averaged or tuned, loss, images, settings, work=work, plan=plan, console=console)
    tuned.cpu().eval()
    return losses


class Averaged(nn.Module):
    """A classifier, and the moving average of its weights, which no gradient reaches."""

    def __init__(self, classifier: ExplainedClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        averaging = get_ema_multi_avg_fn(KEPT)
        self.average = AveragedModel(classifier, multi_avg_fn=averaging).requires_grad_(False)

    def forward(self, images: Tensor, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The classifier's logits and attribution of images; and, once it has taken in the weights, the
        average's attribution of views [V,B,3,H,W] of B images, the mean [B,N] over the views."""
        logits, attribution = self.classifier(images)
        self.average.update_parameters(self.classifier)
        with torch.no_grad():
            _, seen = self.average(views.flatten(0, 1))
        return logits, attribution, seen.float().unflatten(0, views.shape[:2]).mean(dim=0)


def out_of_order(wanted: Tensor, found: Tensor) -> Tensor:
    """[B] how far the FIRST tokens of `wanted` are from leading all others in `found`: the mean, over pairs
    of one of each, of TIED · softplus(lead of the other / TIED), a lead being a difference of logarithms of
    attributions of which EVEN is spread. Attributions are [B,N]. A radius follows from how many copies agree
    about the first tokens, which divergences of whole attributions hardly see.
    """
    first = min(FIRST, found.shape[1] - 1)
    order = wanted.argsort(dim=1, descending=True, stable=True)
    logs = torch.gather(_mixed(found).log(), 1, order)
    leads = logs[:, None, first:] - logs[:, :first, None]
    return TIED * F.softplus(leads / TIED).mean(dim=(1, 2))


def _mixed(attribution: Tensor) -> Tensor:
    return (1 - EVEN) * attribution.float() + EVEN / attribution.shape[1]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Clean images [B,3,H,W] at the classifier's size, as the denoiser's graph brings copies to it."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def write_tuned(
    bundle: Bundle, tuned: ExplainedClassifier, out: Path, *, images: Images, precision: str
) -> dict[str, Exported]:
    """The bundle with the tuned classifier in its place; the denoiser is the bundle's own graph. Arguments
    and errors as write_student's."""
    manifest = bundle.manifest
    origin = Origin(name=manifest.classifier, bundle=bundle.digest)
    changed = manifest.model_copy(update={"tuned_from": origin, "precision": precision})
    with write_bundle(out) as temporary:
        graph = temporary / CLASSIFIER
        error = export_graph(
            tuned,
            {"images": example(tuned)},
            outputs=OUTPUTS,
            graph=graph,
            backward=tuned.needs_gradients,
            half=precision == "fp16",
        )
        report = {CLASSIFIER: Exported(error)}
        finish(bundle, temporary, changed, report, images=images)
    return report


@dataclass(frozen=True)
class Clean:
    """What a bundle's classifier makes of the clean images: share of classes that are right, share of the
    original's first k tokens that are among its own, and share of its own that touch the object, where there
    are masks."""

    k: int
    accuracy: float
    overlap: float
    on_object: float | None

    @classmethod
    def of(cls, logits: Floats, attribution: Floats, held_out: HeldOut, *, wanted: Floats) -> Clean:
        """logits [M,C], attribution [M,N]; wanted: the original's attribution."""
        k = min(FIRST, attribution.shape[1] - 1)
        tops, firsts = ([top_tokens(row, k).tolist() for row in each] for each in (attribution, wanted))
        return cls(
            k,
            accuracy=float(np.mean(logits.argmax(axis=1) == np.array(held_out.right))),
            overlap=float(
                np.mean([len({*one} & {*other}) / k for one, other in zip(tops, firsts, strict=True)])
            ),
            on_object=held_out.on_object(tops),
        )


def _table(clean: Sequence[Clean]) -> Table:
    table = Table(title="clean images")
    masked = clean[0].on_object is not None
    headings = ["", "accuracy", f"top {clean[0].k} shared with the original's"]
    for heading in [*headings, *(["on the object"] if masked else [])]:
        table.add_column(heading, justify="right" if heading else "left")
    for name, each in zip(("before", "after"), clean, strict=True):
        shares = [each.accuracy, each.overlap, *([] if each.on_object is None else [each.on_object])]
        table.add_row(name, *(f"{share:.1%}" for share in shares))
    return table


LOSSES = {"accuracy": "accuracy", "certified": "certified accuracy", "radius": "median attention radius",
          "on_object": "share on the object"}  # fmt: skip
"""Of Measured and Clean: what is not to fall."""


def lost(before: Measured | Clean, after: Measured | Clean, *, where: str) -> Iterator[str]:
    """A line for every figure that is smaller after than before, to the three digits that it is told with."""
    for name, words in LOSSES.items():
        old, new = getattr(before, name, None), getattr(after, name, None)
        if old is not None and new is not None and round(new, 3) < round(old, 3):
            yield f"lost: {words} {where} fell from {old:.3f} to {new:.3f}"
