"""Denoisers of one's own, the handbook's among them."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fvit
from fvit.engines.opening import open_engine
from fvit.errors import FvitError
from fvit.export.bundles import export_bundle
from fvit.export.graphs import export_graph
from fvit.export.restoration import Restoration, load_restoration
from fvit.runtime.bundle import DENOISER, open_bundle
from tests.commands import here, last_line

HANDBOOK = Path(__file__).parents[2] / "docs" / "denoisers.md"


class Blur(nn.Module):
    """A mean of neighbours, the more of it the more noise there is: no learning, no diffusion."""

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        share = (sigma / (sigma + 0.1))[:, None, None, None]
        return (1 - share) * noisy + share * nn.functional.avg_pool2d(noisy, 3, 1, 1)


class Broken(nn.Module):
    """What is wrong with it has a name."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, noisy: Tensor, sigma: Tensor) -> Any:
        if self.what == "raises":
            raise ValueError("seven channels\nare wanted")
        if self.what == "half":
            return noisy[:, :, ::2, ::2]
        if self.what == "company":
            return noisy - noisy.mean(dim=0, keepdim=True)
        if self.what == "one level":
            return noisy * (1 - sigma[0])
        if self.what == "no number":
            return noisy * float("nan")
        return {"images": noisy}


@pytest.fixture
def handbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with the handbook's module and weights for it."""
    (code,) = re.findall(r"```python\n# my_denoiser\.py\n(.*?)```", HANDBOOK.read_text(), flags=re.DOTALL)
    file = tmp_path / "my_denoiser.py"
    file.write_text(code)
    names: dict[str, Any] = {}
    exec(code, names)
    torch.manual_seed(0)
    save_file(names["SmallUNet"]().state_dict(), tmp_path / "small_unet.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as the command does, and undone
    yield tmp_path
    sys.modules.pop("my_denoiser", None)


def test_the_handbooks_network_certifies_from_the_command_line(handbook: Path, samples: list[Path]) -> None:
    done = here(
        "export", "model", "bundle", "--classifier", "vit_tiny_patch16_224", "--no-pretrained",
        "--denoiser", "my_denoiser:denoiser",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    bundle = open_bundle("bundle")
    assert bundle.manifest.denoiser == "my_denoiser:denoiser"
    assert bundle.manifest.schedule.sigmas == pytest.approx([0.05, 1.0])
    done = here("certify", "bundle", samples[0], "--n", "16")
    assert done.status == 0, done.stderr
    done = here("certify", "bundle", samples[0], "--n", "16", "--sigma", "1.5")
    assert "choose σ between 0.0500 and 1" in last_line(done)


def test_a_graph_computes_what_a_network_of_ones_own_does(samples: list[Path], tmp_path: Path) -> None:
    """From Python, with every row at a level of its own; and the bundle it makes is served."""
    from fvit.demo import models
    from fvit.demo.data import LABELS

    network = Blur()
    export_bundle(
        tmp_path / "b", classifier=models.load_classifier(), classifier_name="fvit-demo-vit", labels=LABELS,
        denoiser=Restoration(network, image_size=64, sigmas=(0.05, 1.0)), denoiser_name="blur",
    )  # fmt: skip
    noisy = 1.5 * torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.25
    sigma = torch.tensor([0.05, 0.25, 1.0])
    feeds = {"noisy": noisy.numpy(), "sigma": sigma.numpy(), "timestep": np.zeros(3, np.float32)}
    found = open_engine(tmp_path / "b" / DENOISER, device="cpu").run(feeds)["images"]
    assert np.abs(found - network(noisy, sigma).clamp(0, 1).numpy()).max() <= 2e-5
    with fvit.load(tmp_path / "b") as vit:
        assert vit.predict(samples[0], sigma=0.25, n=16).counts.sum() == 16


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raises", r"fails on images of 16×16: ValueError: seven channels \(.*test_restoration\.py, line"),
        ("half", r"makes torch\.float32 \[2, 3, 8, 8\] of float32 \[2, 3, 16, 16\]"),
        ("company", "every row of a batch must be computed from that row alone"),
        ("one level", "every row of a batch must be computed from that row alone"),
        ("mapping", "makes dict of float32"),
        ("no number", "makes values that are no numbers"),
    ],
)
def test_a_network_that_is_no_denoiser_is_refused_before_it_is_exported(what: str, message: str) -> None:
    restoration = Restoration(Broken(what), image_size=16, sigmas=(0.1, 1.0))
    with pytest.raises(FvitError, match=message) as caught:
        restoration.one_shot(image_size=(16, 16), output_size=(16, 16))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [None, (64, 64), 0])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(FvitError, match="image_size = .*: give the side in pixels"):
        Restoration(Blur(), image_size=size, sigmas=(0.1, 1.0))


def test_levels_may_be_whole_numbers() -> None:
    Restoration(Blur(), image_size=16, sigmas=(1, 2)).one_shot(image_size=(16, 16), output_size=(16, 16))


def test_a_network_that_torch_cannot_export_is_one_line(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
            return noisy * 0.9 if bool(sigma.max() > 2) else noisy

    module = Restoration(Branching(), image_size=16, sigmas=(0.1, 1.0)).one_shot(
        image_size=(16, 16), output_size=(16, 16)
    )
    inputs = {"noisy": torch.rand(2, 3, 16, 16), "sigma": torch.ones(2), "timestep": torch.zeros(2)}
    with pytest.raises(FvitError, match=r"d\.onnx cannot be made: torch cannot export the module") as caught:
        export_graph(module, inputs, outputs=("images",), graph=tmp_path / "d.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("", "elsewhere:make", "ModuleNotFoundError: No module named 'elsewhere'"),
        ("", "mine1:make", "AttributeError: module 'mine1' has no attribute 'make'"),
        ("def make():\n    return 1 / 0", "mine2:make", r"ZeroDivisionError: division by zero \(.*mine2"),
        ("def make():\n    return 7", "mine3:make", r"makes int: it takes a fvit\.export\.restoration\.Rest"),
        (
            "from fvit.export.restoration import Restoration\nfrom torch import nn\n"
            "def make():\n    return Restoration(nn.Identity(), image_size=16, sigmas=(1.0, 0.1))",
            "mine4:make", "--denoiser mine4:make: σ from 1 to 0.1 is no range",
        ),
    ],
)  # fmt: skip
def test_a_callable_that_makes_no_denoiser_is_one_line(
    code: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not name.startswith("elsewhere"):
        (tmp_path / f"{name.partition(':')[0]}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FvitError, match=message) as caught:
        load_restoration(name)
    assert "\n" not in str(caught.value)
