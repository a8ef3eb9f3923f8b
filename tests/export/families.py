"""Small versions of every family of classifiers: the same classes and code paths as the full models."""

from typing import Any

import timm
import torch
from torch import Tensor

SEQUENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 96}),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", {"depth": 2, "img_size": 96}),
    "beit": ("beit_base_patch16_224", {"depth": 2, "embed_dim": 96, "num_heads": 3, "img_size": 96}),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", {"depth": 2, "img_size": 98, "num_classes": 7}),
    "eva02": ("eva02_tiny_patch14_224", {"depth": 2, "img_size": 98, "num_classes": 7}),
    "dinov3": ("vit_small_patch16_dinov3", {"depth": 2, "img_size": 96, "num_classes": 7}),
}
SMALL_SWIN: dict[str, Any] = {
    "depths": (1, 2), "num_heads": (2, 4), "embed_dim": 32, "num_classes": 7, "img_size": 64,
}  # fmt: skip
WINDOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_tiny_patch4_window7_224", SMALL_SWIN | {"window_size": 8}),
    # A grid of 10 by 10 in windows of 4: the last block's windows are shifted and padded.
    "swin-shifted-padded": (
        "swin_tiny_patch4_window7_224", SMALL_SWIN | {"window_size": 4, "img_size": 80}
    ),
    "swinv2": ("swinv2_tiny_window8_256", SMALL_SWIN | {"window_size": 4}),
}  # fmt: skip
FAMILIES = SEQUENCES | WINDOWS


def build(family: str) -> Any:
    """The same model each time, with attention that is far from uniform."""
    torch.manual_seed(0)
    name, options = FAMILIES[family]
    model = timm.create_model(name, **options)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # timm's initial weights make attention all but uniform
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
        elif "gamma" in name or ("norm" in name and name.endswith("weight")):  # some are zero at first
            torch.nn.init.normal_(parameter, 1.0, 0.2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    return model.eval()


def read_rows(model: Any) -> slice:
    """The tokens that a head reads: the class token, or the patches where it averages them."""
    averages = "avg" in str(model.global_pool)
    return slice(int(model.num_prefix_tokens), None) if averages else slice(0, 1)


def caught(model: Any, blocks: Any, pixels: Tensor, *, explained: int | None = None) -> list[Tensor]:
    """These blocks' attention maps of one image, which hold their gradients (`grad`) of its largest
    logit, or of a class's, by plain hooks and backward()."""
    found: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        found.append(output)

    hooks = []
    for block in blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(keep))
    logits = model(pixels)
    for hook in hooks:
        hook.remove()
    logits[0, logits[0].argmax() if explained is None else explained].backward()
    return found
