"""Denoisers of every family as graphs, against the scheduler's own formula and the network in torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvit.engines.opening import open_engine
from fvit.errors import FvitError
from fvit.export.denoisers import load_diffusers
from fvit.export.graphs import export_graph
from tests.export.denoising import saved, small_unet

Original = Callable[[Any, Any, Tensor, Tensor], Tensor]
"""(network, scheduler, x = y + s·z in [-1,1] [1,3,H,W], s []) -> the guess of y."""


def edm(unet: Any, scheduler: Any, x: Tensor, s: Tensor) -> Tensor:
    output = unet(scheduler.precondition_inputs(x, s), scheduler.precondition_noise(s)[None]).sample
    denoised: Tensor = scheduler.precondition_outputs(x, output, s)
    return denoised


def consistency(unet: Any, scheduler: Any, x: Tensor, s: Tensor) -> Tensor:
    """As the scheduler's step and the pipeline do, whose own levels are a fixed list."""
    time = torch.tensor(scheduler.sigma_to_t(float(s)))[None].float()
    output = unet(x / (s**2 + scheduler.config.sigma_data**2) ** 0.5, time).sample
    skip, out = scheduler.get_scalings_for_boundary_condition(s)
    return skip * x + out * output


def flow(unet: Any, scheduler: Any, x: Tensor, s: Tensor) -> Tensor:
    """One Euler step of dx_t/dt = velocity from t to 0."""
    t = s / (1 + s)
    mixed = (1 - t) * x
    return mixed - t * unet(mixed, scheduler._sigma_to_t(t)[None]).sample


def zero_terminal(unet: Any, scheduler: Any, x: Tensor, s: Tensor) -> Tensor:
    """The scheduler's own guess at a step of training, whose level this is."""
    products = scheduler.alphas_cumprod.double()
    t = int(((1 - products) / products).sqrt().sub(s).abs().argmin())
    scheduler.set_timesteps(1000)
    mixed = x * products[t].sqrt().float()
    output = unet(mixed, torch.tensor([float(t)])).sample
    guess: Tensor = scheduler.step(output, t, mixed).pred_original_sample
    return guess


FAMILIES: dict[str, tuple[Any, Original]] = {
    "edm": (EDMEulerScheduler(), edm),
    "edm of another spread": (
        EDMDPMSolverMultistepScheduler(sigma_data=1.0, prediction_type="v_prediction"), edm,
    ),
    "flow": (FlowMatchEulerDiscreteScheduler(shift=3.0), flow),
    "consistency": (CMStochasticIterativeScheduler(), consistency),
    "epsilon that ends in noise": (DDIMScheduler(rescale_betas_zero_snr=True), zero_terminal),
    "v that ends in noise": (
        DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"), zero_terminal,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_graph_computes_what_its_scheduler_and_network_do(name: str, tmp_path: Path) -> None:
    """At both ends of the schedule and between, every row at a level of its own."""
    scheduler, original = FAMILIES[name]
    unet = small_unet()
    diffusion = load_diffusers(saved(tmp_path / "model", unet, scheduler))
    sigmas = diffusion.schedule.sigmas
    if len(sigmas) > 2:  # where s is large, ε leaves next to no pixel that is not clipped
        last = 450 if diffusion.prediction == "epsilon" else 998
        sigma = sigmas[[0, 150, 300, last]].astype(np.float32)
    else:
        sigma = np.array([sigmas[0], 0.12, 1.0, sigmas[1]], np.float32)
    clean = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    inputs = {
        "noisy": clean + torch.tensor(sigma)[:, None, None, None] * noise,
        "sigma": torch.tensor(sigma),
        "timestep": torch.tensor(diffusion.schedule.timestep(sigma), dtype=torch.float32),
    }
    module = diffusion.one_shot(image_size=(16, 16), output_size=(16, 16))
    export_graph(module, inputs, outputs=("images",), graph=tmp_path / "d.onnx")
    engine = open_engine(tmp_path / "d.onnx", device="cpu")
    assert [tensor.name for tensor in engine.inputs] == ["noisy", "sigma", "timestep"]
    found = engine.run({key: value.numpy() for key, value in inputs.items()})["images"]
    for row in range(4):
        with torch.no_grad():
            x = 2 * inputs["noisy"][row : row + 1] - 1
            expected = original(unet, scheduler, x, torch.tensor(2 * sigma[row])).clamp(-1, 1)
        assert float((expected.abs() < 1).float().mean()) > 0.1  # there is something to compare
        assert np.abs(found[row] - (expected[0].numpy() + 1) / 2).max() <= 2e-5


def test_the_same_network_exports_to_the_same_bytes(tmp_path: Path) -> None:
    diffusion = load_diffusers(saved(tmp_path / "model", small_unet(), EDMEulerScheduler()))
    module = diffusion.one_shot(image_size=(16, 16), output_size=(16, 16))
    inputs = {"noisy": torch.rand(2, 3, 16, 16), "sigma": torch.ones(2), "timestep": torch.ones(2)}
    for name in ("one.onnx", "other.onnx"):
        export_graph(module, inputs, outputs=("images",), graph=tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


def test_a_class_conditional_network_is_asked_for_its_null_class(tmp_path: Path) -> None:
    unet = small_unet(num_class_embeds=5)
    folder = saved(tmp_path / "model", unet, EDMEulerScheduler())
    diffusion = load_diffusers(folder, null_class=4)
    module = diffusion.one_shot(image_size=(16, 16), output_size=(16, 16))
    noisy = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    inputs = {"noisy": noisy, "sigma": torch.tensor([0.1, 0.25, 1.0]), "timestep": torch.zeros(3)}
    export_graph(module, inputs, outputs=("images",), graph=tmp_path / "d.onnx")
    found = open_engine(tmp_path / "d.onnx", device="cpu").run({k: v.numpy() for k, v in inputs.items()})
    errors = {}
    for label in (4, 3):

        def labelled(x: Tensor, time: Tensor, label: int = label) -> Any:
            return unet(x, time, class_labels=torch.tensor([label]))

        with torch.no_grad():
            rows = zip(2 * noisy - 1, 2 * inputs["sigma"], strict=True)
            guesses = [edm(labelled, EDMEulerScheduler(), x[None], s) for x, s in rows]
        expected = (torch.cat(guesses).clamp(-1, 1) + 1) / 2
        errors[label] = np.abs(found["images"] - expected.numpy()).max()
    assert errors[4] <= 2e-5
    assert errors[3] > 1e-2


@pytest.mark.parametrize(
    ("options", "null_class", "message"),
    [
        ({"num_class_embeds": 5}, None, "--null-class which of its classes, 0 to 4, was trained to stand"),
        ({"num_class_embeds": 5}, 5, "--null-class 5: .* has the classes 0 to 4"),
        ({}, 0, "takes no class: leave --null-class out"),
        ({"class_embed_type": "timestep"}, 0, "a class embedding of type 'timestep'"),
        (
            {"time_embedding_type": "learned", "num_train_timesteps": 1000}, None,
            "learned table of integer steps, and its EDMEulerScheduler",
        ),
        ({"time_embedding_type": "fourier"}, None, "a fourier time embedding"),
        ({"center_input_sample": True}, None, r"takes images in \[0,1\]"),
    ],
)  # fmt: skip
def test_networks_that_need_more_than_a_level_are_refused(
    options: dict[str, Any], null_class: int | None, message: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", small_unet(**options), EDMEulerScheduler())
    with pytest.raises(FvitError, match=message) as caught:
        load_diffusers(folder, null_class=null_class)
    assert "\n" not in str(caught.value)


def test_a_learned_table_that_is_shorter_than_the_schedule_is_refused(tmp_path: Path) -> None:
    unet = small_unet(time_embedding_type="learned", num_train_timesteps=500)
    with pytest.raises(FvitError, match="a learned table of 500 steps, and its scheduler gives it 1000"):
        load_diffusers(saved(tmp_path / "short", unet, DDPMScheduler()))
    load_diffusers(saved(tmp_path / "fits", unet, DDPMScheduler(num_train_timesteps=500)))


def test_another_network_than_a_unet_of_images_is_refused_by_its_class(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", small_unet(), EDMEulerScheduler())
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(
        json.dumps(config | {"_class_name": UNet2DConditionModel.__name__})
    )
    with pytest.raises(FvitError, match="holds a UNet2DConditionModel"):
        load_diffusers(folder)


def test_weights_that_are_missing_are_not_made_up_and_none_are_left_over(tmp_path: Path) -> None:
    """As where the configuration is of another network."""
    folder = saved(tmp_path / "model", small_unet(), EDMEulerScheduler())
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    bias = tensors.pop("conv_out.bias")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(FvitError, match=r"lacks weights of its UNet2DModel: conv_out\.bias"):
        load_diffusers(folder)
    more = {"conv_out.bias": bias, "conv_more.bias": bias.clone()}
    save_file(tensors | more, file, metadata={"format": "pt"})
    with pytest.raises(FvitError, match=r"holds weights that are not of its UNet2DModel: conv_more\.bias"):
        load_diffusers(folder)
