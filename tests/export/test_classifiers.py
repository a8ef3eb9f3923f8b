import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from fvit.errors import FvitError
from fvit.export.classifiers import ExplainedClassifier, class_labels, load_classifier
from fvit.export.graphs import export_graph

# Small versions of each family: the same classes and code paths as the full models.
SEQUENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"depth": 3}),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", {"depth": 3}),
    "beit": ("beit_base_patch16_224", {"depth": 2, "embed_dim": 96, "num_heads": 3}),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", {"depth": 2, "img_size": 98, "num_classes": 7}),
    "eva02": ("eva02_tiny_patch14_224", {"depth": 2, "num_classes": 7}),
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
MODELS = SEQUENCES | WINDOWS


def _model(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    name, options = MODELS[family]
    model = timm.create_model(name, **options)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # timm's initial weights make attention all but uniform
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
        elif "norm" in name and name.endswith("weight"):  # zero at first in Swin v2
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    return model.eval()


def _maps(model: torch.nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and the attention maps of all blocks, caught by plain hooks."""
    caught: list[Tensor] = []
    for block in model.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.no_grad():
        return model(images), caught


def _differentiated(plain: Any, blocks: Any, pixels: Tensor) -> list[Tensor]:
    """These blocks' attention maps of one image, with their gradients of its largest logit."""
    caught: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        caught.append(output)

    for block in blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(keep)
    logits = plain(pixels)
    logits[0, logits[0].argmax()].backward()
    return caught


@pytest.mark.parametrize(
    ("family", "explanation"),
    [
        *itertools.product(SEQUENCES, ["attention", "rollout", "gradcam", "gradient-rollout"]),
        *itertools.product(WINDOWS, ["attention", "gradcam"]),
    ],
)
def test_each_family_exports_and_equals_torch(family: str, explanation: str, tmp_path: Path) -> None:
    explained = ExplainedClassifier(_model(family), explanation=explanation)
    images = torch.rand(5, 3, *explained.size, generator=torch.Generator().manual_seed(0))
    error = export_graph(
        explained,
        {"images": images},
        outputs=("logits", "attribution"),
        graph=tmp_path / "c.onnx",
        backward=explained.needs_gradients,
    )
    assert error <= 1e-4
    with torch.no_grad():
        _, attribution = explained(images)
    assert attribution.shape == (5, explained.grid[0] * explained.grid[1])
    assert np.allclose(attribution.sum(dim=1), 1, atol=1e-5)


@pytest.mark.parametrize("family", SEQUENCES)
def test_rollout_is_the_product_of_the_papers_matrices(family: str) -> None:
    """Abnar & Zuidema 2020, equation by equation, with whole matrices."""
    explained = ExplainedClassifier(_model(family), explanation="rollout")
    images = torch.rand(2, 3, *explained.size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, found = explained(images)
    plain = _model(family)
    _, maps = _maps(plain, (images - explained.mean) / explained.std)
    product = torch.eye(maps[0].shape[-1]).expand(2, -1, -1)
    for each in maps:
        product = (0.5 * each.mean(dim=1) + 0.5 * torch.eye(each.shape[-1])) @ product
    prefix = int(plain.num_prefix_tokens)  # type: ignore[arg-type]
    pooled = "avg" in str(plain.global_pool)
    rows = product[:, prefix:].mean(dim=1) if pooled else product[:, 0]
    expected = rows[:, prefix:] / rows[:, prefix:].sum(dim=1, keepdim=True)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("family", SEQUENCES)
@pytest.mark.parametrize("explanation", ["gradcam", "gradient-rollout"])
def test_gradient_explanations_equal_the_papers_equations_by_autograd(family: str, explanation: str) -> None:
    """Image by image, with backward() and retained gradients, as the papers' code would."""
    explained = ExplainedClassifier(_model(family), explanation=explanation)
    images = torch.rand(3, 3, *explained.size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        _, found = explained(images)
    for image, attribution in zip(images, found, strict=True):
        plain: Any = _model(family)
        caught = _differentiated(plain, plain.blocks, (image[None] - explained.mean) / explained.std)
        products = [each.detach()[0] * each.grad[0] for each in caught]  # type: ignore[index]
        prefix = int(plain.num_prefix_tokens)
        rows = slice(prefix, None) if "avg" in str(plain.global_pool) else slice(0, 1)
        if explanation == "gradcam":
            relevance = products[-1].mean(dim=0).clamp(min=0)
        else:
            relevance = torch.eye(products[0].shape[-1])
            for product in products:
                relevance = relevance + product.clamp(min=0).mean(dim=0) @ relevance
        expected = relevance[rows].mean(dim=0)[prefix:]
        expected = expected / expected.sum()
        assert torch.allclose(attribution, expected, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("family", WINDOWS)
@pytest.mark.parametrize("explanation", ["attention", "gradcam"])
def test_windows_of_the_last_stage_are_put_back_on_its_grid(family: str, explanation: str) -> None:
    """Token by token: where it went when the grid was shifted, and what its window's queries gave it."""
    explained = ExplainedClassifier(_model(family), explanation=explanation)
    images = torch.rand(2, 3, *explained.size, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        _, found = explained(images)
    rows, columns = explained.grid
    for image, attribution in zip(images, found, strict=True):
        plain: Any = _model(family)
        block = plain.layers[-1].blocks[-1]
        caught = _differentiated(plain, [block], (image[None] - explained.mean) / explained.std)
        maps = caught[0].detach()
        if explanation == "gradcam":
            maps = maps * caught[0].grad  # type: ignore[operator]
        received = maps.mean(dim=1).clamp(min=0).mean(dim=1)  # [windows, tokens of a window]
        (high, wide), (down, right) = block.window_size, block.shift_size
        windows_across = -(-columns // wide)
        expected = torch.zeros(rows, columns)
        for r in range(rows):
            for c in range(columns):
                r_shifted, c_shifted = (r - down) % rows, (c - right) % columns
                window = r_shifted // high * windows_across + c_shifted // wide
                expected[r, c] = received[window, r_shifted % high * wide + c_shifted % wide]
        expected = expected.flatten() / expected.sum()
        assert torch.allclose(attribution, expected, atol=1e-5 * float(expected.max()))


def test_rollout_through_stages_of_windows_is_refused() -> None:
    for explanation in ("rollout", "gradient-rollout"):
        with pytest.raises(FvitError, match="use attention or gradcam"):
            ExplainedClassifier(_model("swin"), explanation=explanation)


def test_explaining_leaves_the_logits_alone() -> None:
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain = _model("deit-distilled")((images - 0.5) / 0.5)
        config = _model("deit-distilled")
        config.pretrained_cfg = dict(config.pretrained_cfg) | {"mean": (0.5,) * 3, "std": (0.5,) * 3}  # type: ignore[assignment, arg-type]
        explained, _ = ExplainedClassifier(config)(images)
    assert torch.allclose(plain, explained, rtol=1e-4, atol=1e-4)


def test_models_that_cannot_be_explained_are_refused_with_what_can() -> None:
    with pytest.raises(FvitError, match=r"ResNet.*ViT, DeiT"):
        ExplainedClassifier(timm.create_model("resnet18"))
    with pytest.raises(FvitError, match="no classification head"):
        ExplainedClassifier(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1))
    with pytest.raises(FvitError, match="attention, rollout, gradcam"):
        ExplainedClassifier(_model("vit"), explanation="guess")


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(FvitError, match="did you mean vit_tiny_patch16_224"):
        load_classifier("vit_tiny_patch16_225")


def test_a_local_checkpoint_brings_its_own_number_of_classes(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    save_file(model.state_dict(), tmp_path / "five.safetensors")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "five.pth"
    )
    for name in ("five.safetensors", "five.pth"):
        loaded = load_classifier("vit_tiny_patch16_224", weights=tmp_path / name)
        assert loaded.num_classes == 5
        assert torch.equal(loaded.state_dict()["head.weight"], model.state_dict()["head.weight"])


def test_weights_that_do_not_fit_show_the_first_mismatches(tmp_path: Path) -> None:
    save_file(timm.create_model("vit_small_patch16_224").state_dict(), tmp_path / "small.safetensors")
    with pytest.raises(FvitError, match=r"does not fit.*instead of.*and \d+ more"):
        load_classifier("vit_tiny_patch16_224", weights=tmp_path / "small.safetensors")


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


def test_a_pickled_file_with_code_in_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, write in (("a.pth", torch.save), ("b.pth", lambda o, f: f.write_bytes(pickle.dumps(o)))):
        write({"state_dict": Malicious()}, tmp_path / name)
        with pytest.raises(FvitError, match="refused|cannot be read"):
            load_classifier("vit_tiny_patch16_224", weights=tmp_path / name)
    assert "code ran" not in capsys.readouterr().out


def test_labels_are_counted(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1)
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    assert class_labels(model, file=tmp_path / "labels.txt") == ("cat", "dog", "bird")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(FvitError, match="2 labels, but the model has 3 classes"):
        class_labels(model, file=tmp_path / "labels.txt")
    assert class_labels(model, file=None) == ("0", "1", "2")
    assert "tench" in class_labels(timm.create_model("vit_tiny_patch16_224", depth=1), file=None)[0]
