"""A checkpoint of openai/guided-diffusion or openai/improved-diffusion -> a diffusers UNet2DModel.

The architecture is the one of Dhariwal & Nichol 2021 (ADM) and of Nichol & Dhariwal 2021. Almost all of
it can be read off the tensors; what cannot comes from the flags that the checkpoint was trained with.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor

from fvit.errors import FvitError
from fvit.export.checkpoints import read_tensors, refuse
from fvit.export.denoisers import Diffusion
from fvit.export.preconditioning import VariancePreserving
from fvit.runtime.schedule import Schedule

CHOICES: dict[str, Any] = {
    "image_size": 64,
    "num_heads": 4,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_new_attention_order": False,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "rescale_timesteps": False,
    "predict_xstart": False,
}
"""Flags that no tensor shows, with guided-diffusion's own defaults."""

SEEN = (
    "num_channels", "num_res_blocks", "channel_mult", "attention_resolutions", "learn_sigma",
    "use_scale_shift_norm", "resblock_updown", "class_cond",
)  # fmt: skip
"""Flags that tensors show: those that are given are checked."""

WITHOUT_EFFECT = (
    "dropout", "use_fp16", "use_checkpoint", "use_kl", "rescale_learned_sigmas",
    "timestep_respacing", "use_ddim", "sigma_small", "batch_size", "num_samples", "lr", "model_path",
)  # fmt: skip
"""Flags of training and sampling that leave the one-step function alone."""


@dataclass(frozen=True)
class Architecture:
    """What the tensors of a checkpoint show. Levels run from the image's resolution downwards."""

    base: int  # width of the timestep embedding, `num_channels`
    channels: tuple[int, ...]  # of each level
    attention: tuple[bool, ...]  # of each level
    blocks: int  # residual blocks a level on the way down; one more on the way up
    scale_shift: bool  # whether the timestep scales a norm's output too
    resampling_blocks: bool  # residual blocks halve and double the image, instead of convolutions
    outputs: int


PUBLISHED = Architecture(
    base=256,
    channels=(256, 256, 512, 512, 1024, 1024),
    attention=(False, False, False, True, True, True),
    blocks=2,
    scale_shift=True,
    resampling_blocks=True,
    outputs=6,
)
"""256x256_diffusion_uncond.pt, the denoiser of Hu et al. 2024 and Carlini et al. 2023."""

PUBLISHED_FLAGS = "--image_size 256 --num_head_channels 64"


def load_adm(file: Path, *, flags: str | None = None) -> Diffusion:
    """A checkpoint and its training flags -> the denoiser as diffusers knows it.

    flags: as its authors print them, for example "--num_head_channels 64 --noise_schedule linear"; not
    needed for the published unconditional 256x256 model, which is known by its tensors. Raises FvitError
    where a flag is unknown or contradicts the tensors, tensors are left over or missing or of another
    shape (the first three are named), and for a class-conditional model.
    """
    tensors = read_tensors(file)
    seen = infer(tensors, file=file)
    if flags is None:
        if seen != PUBLISHED:
            raise FvitError(
                f"{file} is not the published 256x256 model, and its tensors show neither the number of "
                "attention heads nor the noise schedule: give its training flags with --adm-flags"
            )
        flags = PUBLISHED_FLAGS
    chosen, checked = parse_flags(flags)
    _check_heads(seen, chosen)
    _check_flags(checked, seen, image_size=chosen["image_size"])
    unet = build_unet(seen, chosen)
    unet.load_state_dict(convert(tensors, seen, unet, chosen, file=file))
    preconditioning = VariancePreserving(
        schedule(chosen["noise_schedule"], steps=chosen["diffusion_steps"]),
        "sample" if chosen["predict_xstart"] else "epsilon",
        timestep_scale=1000 / chosen["diffusion_steps"] if chosen["rescale_timesteps"] else 1.0,
    )
    return Diffusion(unet.eval(), preconditioning, chosen["image_size"])


def parse_flags(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Training flags -> all CHOICES by name, and those of SEEN that were given, as text."""
    try:
        words = shlex.split(text.replace("=", " "))
    except ValueError as error:
        raise FvitError(f"--adm-flags '{text}': {error}") from error
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise FvitError(f"--adm-flags '{text}': write pairs such as --num_head_channels 64")
    chosen, checked = dict(CHOICES), {}
    for name, value in zip((word[2:] for word in words[::2]), words[1::2], strict=True):
        if name in CHOICES:
            chosen[name] = _parsed(name, value)
        elif name in SEEN:
            checked[name] = value
        elif name not in WITHOUT_EFFECT:
            raise FvitError(f"--adm-flags: '{name}' is unknown; known are {', '.join((*CHOICES, *SEEN))}")
    if chosen["diffusion_steps"] != 1000 and "--rescale_timesteps" not in words:
        raise FvitError(
            f"--adm-flags: with diffusion_steps {chosen['diffusion_steps']} say rescale_timesteps too: "
            "unless told improved-diffusion trains with True, guided-diffusion with False"
        )
    return chosen, checked


def _parsed(name: str, value: str) -> Any:
    kind = type(CHOICES[name])
    if kind is bool:
        if value.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise FvitError(f"--adm-flags: {name} is true or false, not '{value}'")
        return value.lower() in ("true", "1", "yes")
    try:
        return kind(value)
    except ValueError as error:
        raise FvitError(f"--adm-flags: {name} is a number, not '{value}'") from error


def infer(tensors: dict[str, Tensor], *, file: Path) -> Architecture:
    """Read the architecture off a checkpoint's names and shapes."""
    if any(name.startswith("label_emb.") for name in tensors):
        raise FvitError(f"{file} needs a class label: use an unconditional denoiser")
    try:
        ins, outs = _count(tensors, "input_blocks"), _count(tensors, "output_blocks")
        by_block = any(_up_block(tensors, i) for i in range(outs))
        ups = sum(bool(_up_block(tensors, i) or _up_conv(tensors, i)) for i in range(outs))
        levels = ups + 1
        blocks = ins // levels - 1
        if ins != outs or ins != levels * (blocks + 1):
            raise KeyError(f"{ins} input_blocks and {outs} output_blocks make no UNet of {levels} levels")
        firsts = [1 + level * (blocks + 1) for level in range(levels)]
        channels = tuple(len(tensors[f"input_blocks.{i}.0.out_layers.3.weight"]) for i in firsts)
        return Architecture(
            base=tensors["time_embed.0.weight"].shape[1],
            channels=channels,
            attention=tuple(f"input_blocks.{i}.1.qkv.weight" in tensors for i in firsts),
            blocks=blocks,
            scale_shift=len(tensors["input_blocks.1.0.emb_layers.1.weight"]) == 2 * channels[0],
            resampling_blocks=by_block,
            outputs=len(tensors["out.2.weight"]),
        )
    except KeyError as error:
        raise FvitError(
            f"{file} is no checkpoint of guided-diffusion or improved-diffusion: {error.args[0]}"
        ) from error


def _count(tensors: dict[str, Tensor], group: str) -> int:
    found = {int(name.split(".")[1]) for name in tensors if name.startswith(f"{group}.")}
    if found != set(range(len(found))) or not found:
        raise KeyError(f"{group} {sorted(found)} have gaps")
    return len(found)


def _up_block(tensors: dict[str, Tensor], i: int) -> str | None:
    """The residual block that doubles the image at the end of output block i, if one does."""
    return _at_end(tensors, i, "in_layers.0.weight")


def _up_conv(tensors: dict[str, Tensor], i: int) -> str | None:
    """The convolution that follows the doubling at the end of output block i, if one does."""
    return _at_end(tensors, i, "conv.weight")


def _at_end(tensors: dict[str, Tensor], i: int, weight: str) -> str | None:
    names = (f"output_blocks.{i}.{place}" for place in (1, 2))
    return next((name for name in names if f"{name}.{weight}" in tensors), None)


def _check_heads(seen: Architecture, chosen: dict[str, Any]) -> None:
    """Raise FvitError where the attention of a level cannot be cut into heads as the flags say."""
    width, heads = chosen["num_head_channels"], chosen["num_heads"]
    parts, name = (width, "num_head_channels") if width > 0 else (heads, "num_heads")
    attended = {c for c, has in zip(seen.channels, seen.attention, strict=True) if has} | {seen.channels[-1]}
    if parts < 1 or any(channels % parts for channels in attended):
        levels = ", ".join(map(str, sorted(attended)))
        raise FvitError(f"--adm-flags: {name} {parts} does not divide the {levels} channels that attend")
    if width <= 0 and chosen["num_heads_upsample"] not in (-1, heads):
        raise FvitError(
            f"--adm-flags: num_heads_upsample {chosen['num_heads_upsample']}: another number of heads on the "
            f"way up than num_heads {heads} is not supported"
        )


def _check_flags(given: dict[str, str], seen: Architecture, *, image_size: int) -> None:
    """Raise FvitError where a flag says another thing than the tensors."""
    truth = {
        "num_channels": str(seen.base),
        "num_res_blocks": str(seen.blocks),
        "channel_mult": ",".join(f"{c / seen.base:g}" for c in seen.channels),
        "attention_resolutions": ",".join(
            sorted((str(image_size >> level) for level, has in enumerate(seen.attention) if has), key=int)
        ),
        "learn_sigma": str(seen.outputs == 6),
        "use_scale_shift_norm": str(seen.scale_shift),
        "resblock_updown": str(seen.resampling_blocks),
        "class_cond": "False",
    }
    for name, value in given.items():
        said = value
        if name == "attention_resolutions" and all(part.isdecimal() for part in value.split(",")):
            said = ",".join(sorted(value.split(","), key=int))
        said = {"1": "True", "0": "False"}.get(value, said) if truth[name] in ("True", "False") else said
        if value and said.lower() != truth[name].lower():
            raise FvitError(f"--adm-flags: {name} {value}, but the tensors show {truth[name]}")


def build_unet(seen: Architecture, chosen: dict[str, Any]) -> Any:
    """The UNet2DModel of this architecture, with random weights."""
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    kinds = plain if seen.resampling_blocks else ("DownBlock2D", "UpBlock2D")
    resampling = "resnet" if seen.resampling_blocks else "conv"
    width = chosen["num_head_channels"]
    unet = UNet2DModel(
        sample_size=chosen["image_size"],
        in_channels=3,
        out_channels=seen.outputs,
        block_out_channels=seen.channels,
        layers_per_block=seen.blocks,
        down_block_types=tuple("AttnDownBlock2D" if has else kinds[0] for has in seen.attention),
        up_block_types=tuple("AttnUpBlock2D" if has else kinds[1] for has in reversed(seen.attention)),
        downsample_type=resampling,
        upsample_type=resampling,
        attention_head_dim=width if width > 0 else math.gcd(*seen.channels),
        resnet_time_scale_shift="scale_shift" if seen.scale_shift else "default",
        attn_norm_num_groups=32,
        norm_num_groups=32,
        norm_eps=1e-5,
        time_embedding_dim=4 * seen.base,
    )
    if width <= 0:  # as many heads at every level, which diffusers cannot be told: it counts by width
        for module in unet.modules():
            if isinstance(module, Attention):
                module.heads = chosen["num_heads"]
    if seen.base != seen.channels[0]:  # a first multiplier other than 1 leaves the embedding as it is
        unet.time_proj = Timesteps(seen.base, flip_sin_to_cos=True, downscale_freq_shift=0)
        unet.time_embedding = TimestepEmbedding(seen.base, 4 * seen.base)
    return unet


def convert(
    tensors: dict[str, Tensor], seen: Architecture, unet: Any, chosen: dict[str, Any], *, file: Path
) -> dict[str, Tensor]:
    """The checkpoint under diffusers' names, its fused query-key-value matrices split.

    Raises FvitError where a tensor is missing, left over, or of another shape than the UNet's.
    """
    expected = unet.state_dict()
    heads = {name: module.heads for name, module in unet.named_modules() if isinstance(module, Attention)}
    converted, used, wrong = {}, set(), []
    for source, target in _pairs(seen, tensors):
        for kind in ("weight", "bias"):
            name = f"{source}.{kind}"
            if name not in tensors:
                wrong.append(f"{name} is missing")
                continue
            used.add(name)
            value = tensors[name].float()
            if target.endswith(".qkv"):
                block = target.removesuffix(".qkv")
                parts = split_qkv(value, heads=heads[block], new_order=chosen["use_new_attention_order"])
                for part, matrix in zip("qkv", parts, strict=True):
                    converted[f"{block}.to_{part}.{kind}"] = matrix
            else:
                # Attention projects by 1-d convolutions of width 1 there, by matrices here.
                converted[f"{target}.{kind}"] = value.squeeze(-1) if value.ndim == 3 else value
    wrong += [f"{name} is not the architecture's" for name in tensors if name not in used]
    wrong += [f"{name} has no source" for name in expected if name not in converted and not wrong]
    wrong += [
        f"{name} is {list(converted[name].shape)} instead of {list(value.shape)}"
        for name, value in expected.items()
        if name in converted and converted[name].shape != value.shape
    ]
    refuse(file, "cannot be converted", wrong)
    return converted


def split_qkv(value: Tensor, *, heads: int, new_order: bool) -> tuple[Tensor, ...]:
    """[3C, ...] -> query, key and value, [C, ...] each. The new order holds all queries, then all keys,
    then all values; the legacy order holds query, key and value of one head after another."""
    value = value.squeeze(-1) if value.ndim == 3 else value
    if new_order:
        return value.chunk(3)
    return tuple(part.flatten(0, 1) for part in value.unflatten(0, (heads, 3, -1)).unbind(1))


def _pairs(seen: Architecture, tensors: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(module of the checkpoint, module of the UNet2DModel), all that have weights."""

    def residual(source: str, target: str) -> Iterator[tuple[str, str]]:
        yield f"{source}.in_layers.0", f"{target}.norm1"
        yield f"{source}.in_layers.2", f"{target}.conv1"
        yield f"{source}.emb_layers.1", f"{target}.time_emb_proj"
        yield f"{source}.out_layers.0", f"{target}.norm2"
        yield f"{source}.out_layers.3", f"{target}.conv2"
        if f"{source}.skip_connection.weight" in tensors:
            yield f"{source}.skip_connection", f"{target}.conv_shortcut"

    def attention(source: str, target: str) -> Iterator[tuple[str, str]]:
        yield f"{source}.norm", f"{target}.group_norm"
        yield f"{source}.qkv", f"{target}.qkv"
        yield f"{source}.proj_out", f"{target}.to_out.0"

    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    levels, stride = len(seen.channels), seen.blocks + 1
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        for i in range(seen.blocks):
            source = f"input_blocks.{1 + level * stride + i}"
            yield from residual(f"{source}.0", f"{down}.resnets.{i}")
            if seen.attention[level]:
                yield from attention(f"{source}.1", f"{down}.attentions.{i}")
        if level < levels - 1:
            source = f"input_blocks.{(level + 1) * stride}.0"
            if seen.resampling_blocks:
                yield from residual(source, f"{down}.downsamplers.0")
            else:
                yield f"{source}.op", f"{down}.downsamplers.0.conv"
        for i in range(stride):
            number = (levels - 1 - level) * stride + i
            yield from residual(f"output_blocks.{number}.0", f"{up}.resnets.{i}")
            if seen.attention[level]:
                yield from attention(f"output_blocks.{number}.1", f"{up}.attentions.{i}")
            if block := _up_block(tensors, number):
                yield from residual(block, f"{up}.upsamplers.0")
            elif conv := _up_conv(tensors, number):
                yield f"{conv}.conv", f"{up}.upsamplers.0.conv"
    yield from residual("middle_block.0", "mid_block.resnets.0")
    yield from attention("middle_block.1", "mid_block.attentions.0")
    yield from residual("middle_block.2", "mid_block.resnets.1")
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


def schedule(name: str, *, steps: int) -> Schedule:
    """The noise schedule of this name: "linear" or "cosine" (Nichol & Dhariwal 2021)."""
    if name not in ("linear", "cosine"):
        raise FvitError(f"--adm-flags: noise_schedule is linear or cosine, not '{name}'")
    if steps < 2:
        raise FvitError(f"--adm-flags: diffusion_steps is {steps}; a schedule has at least 2")
    if name == "cosine":
        betas = DDPMScheduler(steps, beta_schedule="squaredcos_cap_v2").betas.double().numpy()
    else:
        betas = np.linspace(0.1 / steps, 20 / steps, steps)
    return Schedule(np.cumprod(1 - betas))
