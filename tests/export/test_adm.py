"""Checkpoints of guided-diffusion and improved-diffusion, made by a UNet written from the papers' text:
Nichol & Dhariwal 2021 (appendix A), Dhariwal & Nichol 2021 (section 3)."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from fvit.errors import FvitError
from fvit.export import adm
from fvit.export.denoisers import OneShotDenoiser
from fvit.export.graphs import export_graph


class Residual(nn.Module):
    """norm, SiLU, conv; the timestep; norm, SiLU, conv; plus the input. `resample` halves ("down") or
    doubles ("up") both paths after the first activation."""

    def __init__(self, c_in: int, c_out: int, c_time: int, *, scale_shift: bool, resample: str = "") -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        norm, conv = nn.GroupNorm(32, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.in_layers = nn.Sequential(norm, nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(c_time, c_out * (2 if scale_shift else 1)))
        norm, conv = nn.GroupNorm(32, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.out_layers = nn.Sequential(norm, nn.SiLU(), nn.Dropout(0.0), conv)
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = F.silu(self.in_layers[0](x))
        h, x = self.in_layers[2](self._resampled(h)), self._resampled(x)
        embedded = self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = embedded.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[3](F.silu(h))
        else:
            h = self.out_layers(h + embedded)
        return self.skip_connection(x) + h


class SelfAttention(nn.Module):
    def __init__(self, channels: int, *, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        b, c, height, width = x.shape
        fused = self.qkv(self.norm(x.reshape(b, c, -1)))
        each = c // self.heads
        if self.new_order:  # all queries, all keys, all values
            q, k, v = fused.reshape(b, 3, self.heads, each, -1).unbind(1)
        else:  # head by head: its query, its key, its value
            q, k, v = fused.reshape(b, self.heads, 3, each, -1).unbind(2)
        weights = torch.einsum("bhct,bhcs->bhts", q, k).div(math.sqrt(each)).softmax(dim=-1)
        mixed = torch.einsum("bhts,bhcs->bhct", weights, v).reshape(b, c, -1)
        return x + self.proj_out(mixed).reshape(b, c, height, width)


class Resample(nn.Module):
    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        if up:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        else:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")) if self.up else self.op(x)


class Conv(nn.Conv2d):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class GuidedUNet(nn.Module):
    """The UNet of the papers under the checkpoints' names."""

    def __init__(
        self, *, width: int, multipliers: tuple[float, ...], blocks: int, attention: tuple[bool, ...],
        new_order: bool, scale_shift: bool, by_block: bool, heads: int = 0, head_channels: int = 0,
        outputs: int = 6,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, time = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))

        def residual(c_in: int, c_out: int, resample: str = "") -> Residual:
            return Residual(c_in, c_out, time, scale_shift=scale_shift, resample=resample)

        def attend(c: int) -> SelfAttention:
            return SelfAttention(c, heads=heads or c // head_channels, new_order=new_order)

        channels = [int(width * m) for m in multipliers]
        c = channels[0]
        self.input_blocks = nn.ModuleList([nn.ModuleList([Conv(3, c, 3, padding=1)])])
        skips = [c]
        for level, c_level in enumerate(channels):
            for _ in range(blocks):
                layers: list[nn.Module] = [residual(c, c_level)]
                c = c_level
                if attention[level]:
                    layers.append(attend(c))
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(c)
            if level < len(channels) - 1:
                down = residual(c, c, "down") if by_block else Resample(c, up=False)
                self.input_blocks.append(nn.ModuleList([down]))
                skips.append(c)
        self.middle_block = nn.ModuleList([residual(c, c), attend(c), residual(c, c)])
        self.output_blocks = nn.ModuleList()
        for level, c_level in reversed(list(enumerate(channels))):
            for i in range(blocks + 1):
                layers = [residual(c + skips.pop(), c_level)]
                c = c_level
                if attention[level]:
                    layers.append(attend(c))
                if level and i == blocks:
                    layers.append(residual(c, c, "up") if by_block else Resample(c, up=True))
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), nn.Conv2d(c, outputs, 3, padding=1))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10000) * torch.arange(self.width // 2) / (self.width // 2))
        angles = timestep[:, None] * frequencies
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        kept = []
        for block in self.input_blocks:
            for layer in block:  # type: ignore[attr-defined]
                x = layer(x, time)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, time)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for layer in block:  # type: ignore[attr-defined]
                x = layer(x, time)
        return self.out(x)


PUBLISHED = {"new_order": False, "scale_shift": True, "by_block": True}
"""What the 256x256 model has of the options that are tried in every combination."""

SMALL: dict[str, Any] = {
    "width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (False, True), "head_channels": 16,
    **PUBLISHED,
}  # fmt: skip
FLAGS = "--image_size 16 --num_head_channels 16"


def _checkpoint(file: Path, **options: Any) -> GuidedUNet:
    torch.manual_seed(0)
    unet = GuidedUNet(**SMALL | options).eval()
    for name, parameter in unet.named_parameters():
        # Every weight matters, those of the norms too; fan-in scaling keeps activations near 1.
        spread = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, centre, spread)
    torch.save(unet.state_dict(), file)
    return unet


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("new_order", "scale_shift", "by_block"), list(itertools.product([False, True], repeat=3))
)
def test_a_converted_checkpoint_computes_what_it_computed(
    new_order: bool, scale_shift: bool, by_block: bool, tmp_path: Path
) -> None:
    options = {"new_order": new_order, "scale_shift": scale_shift, "by_block": by_block}
    original = _checkpoint(tmp_path / "small.pt", **options)
    flags = f"{FLAGS} --use_new_attention_order {new_order} --learn_sigma True --num_channels 32"
    diffusion = adm.load_adm(tmp_path / "small.pt", flags=flags)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, 16, 16, generator=generator)
    timestep = torch.tensor([3.25, 100.0, 500.0])
    with torch.no_grad():
        found = diffusion.unet(x, timestep).sample
        assert _error(found, original(x, timestep)) <= 1e-4

    # One step of denoising, every row at a level of its own, against the formula written out with the
    # original network.
    denoiser = OneShotDenoiser(diffusion, image_size=(16, 16), output_size=(16, 16))
    sigma = torch.tensor([0.25, 0.12, 1.0])
    inputs = {
        "noisy": torch.rand(3, 3, 16, 16, generator=generator),
        "sigma": sigma,
        "timestep": torch.tensor(diffusion.schedule.timestep(sigma.numpy()), dtype=torch.float32),
    }
    keep = (1 / (1 + 4 * sigma**2))[:, None, None, None]
    scaled = keep**0.5 * (2 * inputs["noisy"] - 1)
    with torch.no_grad():
        guess = original(scaled, inputs["timestep"])[:, :3]
        clean = ((scaled - (1 - keep) ** 0.5 * guess) / keep**0.5).clamp(-1, 1)
        assert _error(denoiser(*inputs.values()), (clean + 1) / 2) <= 1e-4
    if options == PUBLISHED:  # of the others' networks test_graphs exports every part
        assert export_graph(denoiser, inputs, outputs=("images",), graph=tmp_path / "d.onnx") <= 1e-4


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (
            {"heads": 4, "outputs": 3},
            "--image_size 16 --num_heads 4 --num_heads_upsample 4 --learn_sigma False",
        ),
        (
            {"heads": 1, "multipliers": (1, 2, 3), "attention": (True, True, True)},
            "--image_size 16 --num_heads 1",
        ),
        ({"multipliers": (2, 2, 4), "attention": (False, True, True), "blocks": 2}, FLAGS),
        ({"multipliers": (1,), "attention": (True,)}, FLAGS),
    ],
    ids=[
        "fixed number of heads",
        "one head at every level",
        "first level wider than the embedding",
        "one level",
    ],
)
def test_other_shapes_convert_too(options: dict[str, Any], flags: str, tmp_path: Path) -> None:
    original = _checkpoint(tmp_path / "a.pt", **options)
    diffusion = adm.load_adm(tmp_path / "a.pt", flags=flags)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([10.0, 700.0])
    with torch.no_grad():
        assert _error(diffusion.unet(x, timestep).sample, original(x, timestep)) <= 1e-4


def test_the_attention_order_matters_and_so_is_never_guessed(tmp_path: Path) -> None:
    original = _checkpoint(tmp_path / "a.pt", new_order=True)
    wrong = adm.load_adm(tmp_path / "a.pt", flags=FLAGS)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert _error(wrong.unet(x, torch.tensor([10.0])).sample, original(x, torch.tensor([10.0]))) > 1e-2
    with pytest.raises(FvitError, match="--adm-flags"):
        adm.load_adm(tmp_path / "a.pt")


def test_the_published_model_is_known_by_its_tensors(tmp_path: Path) -> None:
    """Every shape of the 256x256 model, without its 2 GB of values."""
    with torch.device("meta"):
        original = GuidedUNet(
            width=256, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(False,) * 3 + (True,) * 3,
            new_order=False, scale_shift=True, by_block=True, head_channels=64,
        )  # fmt: skip
        tensors = original.state_dict()
        file = tmp_path / "256x256_diffusion_uncond.pt"
        assert adm.infer(tensors, file=file) == adm.PUBLISHED
        chosen, _ = adm.parse_flags(adm.PUBLISHED_FLAGS)
        unet = adm.build_unet(adm.PUBLISHED, chosen)
        converted = adm.convert(tensors, adm.PUBLISHED, unet, chosen, file=file)
        unet.load_state_dict(converted, assign=True)
    assert isinstance(unet, UNet2DModel)
    assert sum(value.numel() for value in converted.values()) == 552_814_086
    assert {n: v.shape for n, v in converted.items()} == {n: v.shape for n, v in unet.state_dict().items()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num_head_chanels 16", "'num_head_chanels' is unknown"),
        ("num_heads 4", "write pairs"),
        ("--num_heads '4", "No closing quotation"),
        ("--image_size 16 --num_heads 5", "num_heads 5 does not divide the 64 channels"),
        ("--image_size 16 --num_heads 0", "num_heads 0 does not divide"),
        ("--image_size 16 --num_head_channels 48", "num_head_channels 48 does not divide"),
        (f"{FLAGS} --attention_resolutions eight", "attention_resolutions eight, but the tensors show 8"),
        (
            "--image_size 16 --num_heads 4 --num_heads_upsample 2",
            "num_heads_upsample 2: another number of heads",
        ),
        ("--num_heads four", "num_heads is a number, not 'four'"),
        ("--use_new_attention_order maybe", "true or false"),
        ("--noise_schedule quadratic", "linear or cosine"),
        ("--diffusion_steps 1 --rescale_timesteps True", "at least 2"),
        (f"{FLAGS} --diffusion_steps 4000", "with diffusion_steps 4000 say rescale_timesteps too"),
        (f"{FLAGS} --num_channels 64", "num_channels 64, but the tensors show 32"),
        (f"{FLAGS} --resblock_updown False", "the tensors show True"),
        (f"{FLAGS} --channel_mult 1,2,2", "the tensors show 1,2"),
        (f"{FLAGS} --attention_resolutions 16,8", "the tensors show 8"),
        (f"{FLAGS} --class_cond True", "class_cond True, but the tensors show False"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: str, message: str, tmp_path: Path) -> None:
    _checkpoint(tmp_path / "a.pt")
    with pytest.raises(FvitError, match=message):
        adm.load_adm(tmp_path / "a.pt", flags=flags)


def test_whole_flags_as_authors_print_them_are_taken(tmp_path: Path) -> None:
    _checkpoint(tmp_path / "a.pt")
    diffusion = adm.load_adm(
        tmp_path / "a.pt",
        flags="--attention_resolutions 8 --class_cond False --diffusion_steps 4000 --image_size 16 "
        "--learn_sigma True --noise_schedule cosine --num_channels 32 --num_head_channels 16 "
        "--num_res_blocks 1 --resblock_updown True --use_fp16 True --use_scale_shift_norm True "
        "--rescale_timesteps True --dropout 0.1",
    )
    assert diffusion.image_size == 16
    scales = diffusion.preconditioning.scales(torch.ones(1), torch.tensor([100.0]))
    assert scales.time.tolist() == [25.0]
    assert len(diffusion.schedule.alphas_cumprod) == 4000


def test_what_fits_no_architecture_is_reported(tmp_path: Path) -> None:
    tensors = dict(_checkpoint(tmp_path / "a.pt").state_dict())
    for change, message in (
        ({"label_emb.weight": torch.zeros(10, 128)}, "needs a class label"),
        ({"extra.weight": torch.zeros(1)}, "extra.weight is not the architecture's"),
        ({"out.0.bias": torch.zeros(7)}, r"conv_norm_out.bias is \[7\] instead of \[32\]"),
        ({"middle_block.0.in_layers.0.bias": None}, "middle_block.0.in_layers.0.bias is missing"),
        ({"time_embed.0.weight": None}, "no checkpoint of guided-diffusion"),
    ):
        changed: dict[str, Any] = {**tensors, **change}
        torch.save({n: v for n, v in changed.items() if v is not None}, tmp_path / "b.pt")
        with pytest.raises(FvitError, match=message):
            adm.load_adm(tmp_path / "b.pt", flags=FLAGS)


def test_schedules_are_the_papers() -> None:
    """Linear betas from 1e-4 to 0.02 at 1,000 steps; the cosine of Nichol & Dhariwal, equation 17."""
    linear = adm.schedule("linear", steps=1000).alphas_cumprod
    assert np.isclose(linear[0], 1 - 1e-4)
    assert np.isclose(linear[-1] / linear[-2], 1 - 0.02)
    cosine = adm.schedule("cosine", steps=1000).alphas_cumprod
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    assert np.allclose(cosine[:990], f[1:991] / f[0], rtol=1e-4)
