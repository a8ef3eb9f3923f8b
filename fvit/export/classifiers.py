"""A timm vision transformer -> a module that returns logits and an attribution."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fvit.errors import FvitError
from fvit.export import explanations
from fvit.export.checkpoints import load_tensors, read_tensors
from fvit.export.explanations import EXPLANATIONS, OF_LAST_BLOCK
from fvit.export.precision import halve

FAMILIES: dict[Any, str] = {
    VisionTransformer: "ViT, DeiT (distilled too), DINOv2 (with and without registers)",
    Beit: "BEiT and BEiT v2",
    Eva: "EVA, EVA-02 and DINOv3",
    SwinTransformer: "Swin (attention, gradcam)",
    SwinTransformerV2: "Swin v2 (attention, gradcam)",
}
"""timm's classes with softmax attention over tokens, which export."""

WINDOWED: Any = (SwinTransformer, SwinTransformerV2)
"""Those whose attention stays inside windows, on a grid that changes from stage to stage."""


class ExplainedClassifier(nn.Module):
    """images [B,3,h,w] float32 in [0,1] -> logits [B,C], attribution [B,N], both float32.

    Normalisation is inside, with the model's own mean and std from timm's data config. Attention
    probabilities are materialised in the blocks that the explanation reads; the others keep their
    fused form. Raises FvitError for a model of no known family, one without a classification head,
    and an unknown explanation.
    """

    mean: Tensor
    std: Tensor
    readout: Tensor

    def __init__(self, model: Any, *, explanation: str = "attention") -> None:
        super().__init__()
        families: Any = tuple(FAMILIES)
        if not isinstance(model, families):
            raise FvitError(
                f"{type(model).__name__} is no model with softmax attention over tokens; "
                f"what exports: {'; '.join(FAMILIES.values())}"
            )
        if getattr(model, "attn_pool", None) is not None:
            raise FvitError("this model pools its tokens by attention, which no explanation here reads yet")
        if not model.num_classes:
            raise FvitError("this model has no classification head: give a fine-tuned --classifier-weights")
        if explanation not in EXPLANATIONS:
            raise FvitError(f"explanation '{explanation}' is unknown: use one of {', '.join(EXPLANATIONS)}")
        self.model = model.eval()
        self.explanation = explanation
        self.dtype = torch.float32
        config = resolve_model_data_config(model)
        # The data config speaks of the pretrained model; the image size may have been chosen anew.
        self.size: tuple[int, int] = tuple(model.patch_embed.img_size or config["input_size"][1:])
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1))
        self._windows: dict[str, tuple[int, int]] = {}
        if isinstance(model, WINDOWED):
            if explanation not in OF_LAST_BLOCK:
                raise FvitError(
                    f"{explanation} follows one sequence of tokens through all blocks, and "
                    f"{type(model).__name__} merges tokens between stages: use {' or '.join(OF_LAST_BLOCK)}"
                )
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
        for block in blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop = Tap()
            self._taps.append(block.attn.attn_drop)

    @property
    def needs_gradients(self) -> bool:
        """Whether the backward pass is part of the function."""
        return self.explanation in explanations.FROM_GRADIENTS

    @property
    def _windows_of_an_image(self) -> int:
        if not self._windows:
            return 1
        sides = zip(self.grid, self._windows["window"], strict=True)
        return math.prod(-(-side // part) for side, part in sides)

    def halve(self) -> None:
        """Let the network compute in float16; normalisation and explanation stay in float32."""
        halve(self.model)
        self.dtype = torch.float16

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = ((images - self.mean) / self.std).to(self.dtype)
        where: dict[str, Any] = {"readout": self.readout, "prefix": self.prefix}
        if not self.needs_gradients:
            logits = self.model(pixels)
            maps = [tap.caught.float() for tap in self._taps]
            relevance = explanations.FROM_ATTENTION[self.explanation](maps, **where)
        else:
            logits, maps, gradients = self._with_gradients(pixels)
            relevance = explanations.FROM_GRADIENTS[self.explanation](maps, gradients, **where)
        if self._windows:
            relevance = explanations.unwindow(relevance, **self._windows)
        return logits.float(), explanations.normalised(relevance)

    def _with_gradients(self, pixels: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits, maps, and the gradients of each image's largest logit with respect to its maps.

        Rows do not mix, so one backward pass from the sum of the logits serves the whole batch.
        """
        tokens, maps = len(self.readout), len(pixels) * self._windows_of_an_image
        zeros = tuple(pixels.new_zeros(maps, heads, tokens, tokens) for heads in self._heads)

        def predicted(shifts: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
            for tap, shift in zip(self._taps, shifts, strict=True):
                tap.shift = shift
            logits = self.model(pixels)
            return logits.amax(dim=1).sum(), (logits, [tap.caught for tap in self._taps])

        gradients, (logits, maps) = torch.func.grad(predicted, has_aux=True)(zeros)
        return logits, [each.float() for each in maps], [each.float() for each in gradients]


class Tap(nn.Module):
    """Stands where a block drops out attention probabilities (which evaluation never does): keeps
    the map that passes, and adds a zero shift to differentiate by."""

    def __init__(self) -> None:
        super().__init__()
        self.caught: Any = None
        self.shift: Any = None

    def forward(self, probabilities: Tensor) -> Tensor:
        self.caught = probabilities
        return probabilities if self.shift is None else probabilities + self.shift


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
            labels = tuple(file.read_text(encoding="utf-8").splitlines())
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


def _readout(model: Any, *, tokens: int) -> Tensor:
    """[T]: the class token, or the average of the patches where the head reads that."""
    prefix = int(model.num_prefix_tokens)
    weights = torch.zeros(prefix + tokens)
    if prefix and str(model.global_pool) not in ("avg", "avgmax", "max"):
        weights[0] = 1
    else:
        weights[prefix:] = 1 / tokens
    return weights
