"""A timm vision transformer -> a module that returns logits and an attribution."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.layers import DiffAttention
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fvit.errors import FvitError
from fvit.export.checkpoints import load_tensors, read_tensors
from fvit.export.explanations import EXPLANATIONS, OF_A_CLASS, OF_LAST_BLOCK, normalised
from fvit.export.explanations.integration import Attended, integrals
from fvit.export.explanations.propagation import propagate
from fvit.export.explanations.seen import Seen
from fvit.export.explanations.tape import Tape
from fvit.export.explanations.windows import unwindow
from fvit.export.precision import halve
from fvit.runtime.inputs import open_plain

FAMILIES: dict[Any, str] = {
    VisionTransformer: "ViT, DeiT (distilled too), DINOv2 (with and without registers)",
    Beit: "BEiT and BEiT v2",
    Eva: "EVA, EVA-02 and DINOv3",
    SwinTransformer: f"Swin ({', '.join(OF_LAST_BLOCK)})",
    SwinTransformerV2: f"Swin v2 ({', '.join(OF_LAST_BLOCK)})",
}
"""timm's classes with softmax attention over tokens, which export."""

WINDOWED: Any = (SwinTransformer, SwinTransformerV2)
"""Those whose attention stays inside windows, on a grid that changes from stage to stage."""


class ExplainedClassifier(nn.Module):
    """images [B,3,h,w] float32 in [0,1] -> logits [B,C], attribution [B,N], both float32.

    Normalisation is inside, with the model's own mean and std from timm's data config. Attention
    probabilities are materialised in the blocks that the explanation reads, and in all where it
    differentiates; others keep their fused form. explained: the class whose logit is explained, each
    image's own predicted class unless told. Raises FvitError for a model of no known family, one without
    a classification head, an unknown explanation, one that the model does not have, and an explained
    class where there is none.
    """

    mean: Tensor
    std: Tensor
    readout: Tensor

    def __init__(self, model: Any, *, explanation: str = "attention", explained: int | None = None) -> None:
        super().__init__()
        _check(model, explanation=explanation, explained=explained)
        self.model = model.eval()
        self._names = [*model.state_dict()]
        self.explanation = explanation
        self.explained = explained
        self.dtype = torch.float32
        config = resolve_model_data_config(model)
        # The data config speaks of the pretrained model; the image size may have been chosen anew.
        self.size: tuple[int, int] = tuple(model.patch_embed.img_size or config["input_size"][1:])
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1))
        self._windows: dict[str, tuple[int, int]] = {}
        if isinstance(model, WINDOWED):
            blocks = model.layers[-1].blocks[-1:]
            self.prefix, self.grid = 0, tuple(blocks[0].input_resolution)
            self._windows = {
                "window": blocks[0].window_size,
                "shift": blocks[0].shift_size,
                "grid": self.grid,
            }
            area = blocks[0].window_area
            readout = torch.full((area,), 1 / area)
        else:
            blocks = model.blocks[-1:] if explanation in OF_LAST_BLOCK else model.blocks
            self.prefix, self.grid = int(model.num_prefix_tokens), tuple(model.patch_embed.grid_size)
            readout = _readout(model, tokens=self.grid[0] * self.grid[1])
        self.register_buffer("readout", readout)
        self._taps, self._heads = [], [block.attn.num_heads for block in blocks]
        if self._needs:
            # Traced operator by operator, a fused form ends in a layout that makes the projection after it
            # a product with as many copies of its weights as there are rows.
            for module in model.modules():
                if hasattr(module, "fused_attn"):
                    module.fused_attn = False
        for block in blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop = Tap()
            self._taps.append(block.attn.attn_drop)
            if "integrals" in self._needs:
                Attended.replace(block)

    @property
    def needs_gradients(self) -> bool:
        """Whether something is differentiated inside the function."""
        return bool(self._needs)

    @property
    def _needs(self) -> frozenset[str]:
        return EXPLANATIONS[self.explanation].needs

    @property
    def _windows_of_an_image(self) -> int:
        if not self._windows:
            return 1
        sides = zip(self.grid, self._windows["window"], strict=True)
        return math.prod(-(-side // part) for side, part in sides)

    def weights(self) -> dict[str, Tensor]:
        """The model's state_dict, by the names that it has where nothing is explained."""
        return dict(zip(self._names, self.model.state_dict().values(), strict=True))

    def halve(self) -> None:
        """Let the network compute in float16; normalisation and explanation stay in float32."""
        halve(self.model)
        self.dtype = torch.float16

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = ((images - self.mean) / self.std).to(self.dtype)
        logits, caught = self._with_gradients(pixels) if "gradients" in self._needs else self._caught(pixels)
        seen = Seen(
            readout=self.readout,
            prefix=self.prefix,
            windows=self._windows_of_an_image,
            **{name: [each.float() for each in tensors] for name, tensors in caught.items()},
        )
        relevance = EXPLANATIONS[self.explanation].relevance(seen)
        if self._windows:
            relevance = unwindow(relevance, **self._windows)
        return logits.float(), normalised(relevance)

    def _with_gradients(self, pixels: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """`_caught`, and the gradients of each image's explained logit with respect to its maps.

        Rows do not mix, so one backward pass from the sum of the logits serves the whole batch.
        """
        tokens, maps = len(self.readout), len(pixels) * self._windows_of_an_image
        zeros = tuple(pixels.new_zeros(maps, heads, tokens, tokens) for heads in self._heads)

        def explained(shifts: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, dict[str, list[Tensor]]]]:
            for tap, shift in zip(self._taps, shifts, strict=True):
                tap.shift = shift
            logits, caught = self._caught(pixels)
            return self._explained(logits).sum(), (logits, caught)

        gradients, (logits, caught) = torch.func.grad(explained, has_aux=True)(zeros)
        return logits, caught | {"gradients": list(gradients)}

    def _caught(self, pixels: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Logits, and by its name in `Seen` what one forward pass shows: the maps, and their relevances
        or integrals where the explanation needs them."""
        with Tape(pixels) if self._needs & {"relevances", "integrals"} else nullcontext() as tape:
            logits = self.model(pixels)
        maps = [tap.taken() for tap in self._taps]
        if tape is None:
            return logits, {"maps": maps}
        # Of the class that is explained 1, of the others 0.
        seeds = torch.func.grad(lambda logits: self._explained(logits).sum())(logits)
        if "relevances" in self._needs:
            relevances = propagate(
                tape.calls, logits=logits, seeds=seeds.float(), maps=maps, model=_name(self.model)
            )
            return logits, {"maps": maps, "relevances": relevances}
        rows = integrals(self.model, tape.calls, maps=maps, seeds=seeds, prefix=self.prefix)
        return logits, {"maps": maps, "integrals": rows}

    def _explained(self, logits: Tensor) -> Tensor:
        """[B]: the logit that is explained."""
        return logits.amax(dim=1) if self.explained is None else logits[:, self.explained]


class Tap(nn.Module):
    """Stands where a block drops out attention probabilities (which evaluation never does): keeps
    the map that passes until it is taken, and adds a zero shift to differentiate by."""

    def __init__(self) -> None:
        super().__init__()
        self.shift: Any = None
        self._caught: Any = None

    def forward(self, probabilities: Tensor) -> Tensor:
        self._caught = probabilities if self.shift is None else probabilities + self.shift
        return self._caught

    def taken(self) -> Tensor:
        """The map, which is kept no longer: a large batch's maps are large."""
        caught, self._caught = self._caught, None
        return caught


def load_classifier(name: str, *, weights: Path | None = None, pretrained: bool = True) -> nn.Module:
    """A timm model by name: with timm's pretrained weights, a local checkpoint, or random weights.

    weights: a .safetensors file or a torch checkpoint that holds tensors only; its own number of
    classes is kept. Raises FvitError for unknown names (with the nearest), weights that do not fit
    (with the first mismatches), files that hold code, and a hub that cannot be reached.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.5)
        hint = f": did you mean {', '.join(near)}?" if near else ": see fvit-export list"
        raise FvitError(f"timm knows no model '{name}'{hint}")
    options = {}
    try:
        if weights is None:
            return timm.create_model(name, pretrained=pretrained)
        tensors = read_tensors(weights)
        named = timm.get_pretrained_cfg(name).classifier
        head = tensors.get(f"{named[0] if isinstance(named, tuple) else named}.weight")
        if head is not None:
            options["num_classes"] = len(head)
        model = timm.create_model(name, pretrained=False, **options)
    except FvitError:
        raise
    except Exception as error:  # whatever the hub, its client or the model's constructor raises
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if weights is None and pretrained:
            raise FvitError(
                f"the weights of {name} could not be fetched ({first}): "
                "give a local file with --classifier-weights, or --no-pretrained"
            ) from error
        raise FvitError(f"{name} cannot be built: {first}") from error
    load_tensors(model, tensors, file=weights)
    return model


def class_labels(model: Any, *, file: Path | None) -> tuple[str, ...]:
    """One label a class: the lines of `file`, ImageNet's names where timm knows them, or numbers.

    Raises FvitError where the file cannot be read or has another number of lines.
    """
    if file is not None:
        try:
            with open_plain(str(file)) as opened:
                labels = tuple(opened.read().decode().splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise FvitError(f"{file} cannot be read as text: {error}") from error
        if len(labels) != model.num_classes:
            raise FvitError(f"{file} has {len(labels)} labels, but the model has {model.num_classes} classes")
        return labels
    subset = infer_imagenet_subset(model)
    if subset is None:
        return tuple(str(index) for index in range(model.num_classes))
    names = ImageNetInfo(subset)
    return tuple(names.index_to_description(index) for index in range(model.num_classes))


def class_named(labels: Sequence[str], name: str) -> int:
    """The index of the class whose label is `name`, whole or up to its first comma, or which is `name`
    itself where no label is.

    Raises FvitError where there is none (with the nearest labels), or several are called so.
    """
    first = [label.partition(",")[0] for label in labels]
    for called in (labels, first, list(map(str, range(len(labels))))):
        found = [index for index, label in enumerate(called) if label == name]
        if len(found) > 1:
            raise FvitError(f"classes {', '.join(map(str, found))} are all called '{name}': give an index")
        if found:
            return found[0]
    is_number = name.removeprefix("-").isnumeric()
    near = [] if is_number else difflib.get_close_matches(name[:200], first, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"use a label or an index below {len(labels)}"
    raise FvitError(f"no class is called '{name[:200]}': {hint}")


def _check(model: Any, *, explanation: str, explained: int | None) -> None:
    """Raise FvitError where this model cannot be explained so."""
    name = _name(model)
    families: Any = tuple(FAMILIES)
    if not isinstance(model, families):
        raise FvitError(
            f"{name} is no model with softmax attention over tokens; "
            f"what exports: {'; '.join(FAMILIES.values())}"
        )
    if explanation not in EXPLANATIONS:
        raise FvitError(f"explanation '{explanation}' is unknown: use one of {', '.join(EXPLANATIONS)}")
    if getattr(model, "attn_pool", None) is not None:
        raise FvitError(
            f"{name} pools its tokens by an attention of its own after the last block, which no explanation "
            "here reads: use a model whose head reads a class token or averages the patches"
        )
    if not model.num_classes:
        raise FvitError(f"{name} has no classification head: give a fine-tuned --classifier-weights")
    if explained is not None and explanation not in OF_A_CLASS:
        raise FvitError(
            f"{explanation} is the same for every class: use one of {', '.join(OF_A_CLASS)}, or explain none"
        )
    if explained is not None and not 0 <= explained < model.num_classes:
        raise FvitError(f"class {explained} cannot be explained: {name} has {model.num_classes} classes")
    if isinstance(model, WINDOWED):
        if explanation not in OF_LAST_BLOCK:
            raise FvitError(
                f"{explanation} follows one sequence of tokens through all blocks, and {name} merges "
                f"tokens between stages: use one of {', '.join(OF_LAST_BLOCK)}"
            )
        return
    for block in model.blocks:
        if not hasattr(block, "attn") or isinstance(block.attn, DiffAttention):
            raise FvitError(
                f"{name} has no attention map that explanations could read: its {type(block).__name__} "
                "computes attention together with other things, or as a difference of two"
            )
    if explanation == "attribution-rollout":
        if str(model.global_pool) != "token" or not model.num_prefix_tokens:
            raise FvitError(
                f"attribution-rollout integrates over what a class token sees, and the head of {name} reads "
                "the patches: use gradient-rollout or transformer-attribution"
            )
        if any(getattr(block.attn, "gate", None) is not None for block in model.blocks):
            raise FvitError(
                f"attribution-rollout scales attention, and {name} gates what attention gives: use "
                "gradient-rollout or transformer-attribution"
            )


def _name(model: Any) -> str:
    """timm's name of a model, or its class."""
    return getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__


def _readout(model: Any, *, tokens: int) -> Tensor:
    """[T]: the class token, or the average of the patches where the head reads that."""
    prefix = int(model.num_prefix_tokens)
    weights = torch.zeros(prefix + tokens)
    if prefix and str(model.global_pool) not in ("avg", "avgmax", "max"):
        weights[0] = 1
    else:
        weights[prefix:] = 1 / tokens
    return weights
