"""Every explanation against its equation (docs/method.md, section 10), image by image, with whole matrices,
plain hooks and backward(); relevance, which takes more than that, in test_relevance.py."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fvit.engines.opening import open_engine
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.explanations import integration, normalised
from fvit.export.graphs import export_graph
from tests.export.families import SEQUENCES, WINDOWS, build, caught, read_rows

OF_CLASS_TOKENS = ["vit", "deit-distilled", "dinov2-registers"]
A_CLASS = 4
"""Which the images are not predicted to be."""


def attributions(
    family: str, explanation: str, *, explained: int | None = None
) -> tuple[ExplainedClassifier, Tensor, Tensor]:
    """The classifier, two normalised images, and their attributions."""
    classifier = ExplainedClassifier(build(family), explanation=explanation, explained=explained)
    images = torch.rand(2, 3, *classifier.size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits, found = classifier(images)
    assert explained is None or explained not in logits.argmax(dim=1)
    return classifier, (images - classifier.mean) / classifier.std, found


def assert_shares(found: Tensor, relevance: Tensor) -> None:
    expected = relevance / relevance.sum()
    assert torch.allclose(found, expected.to(found.dtype), rtol=0, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize("family", SEQUENCES)
def test_rollout_is_the_product_of_the_papers_matrices(family: str) -> None:
    """Abnar & Zuidema 2020: each row of attention and identity, scaled to sum 1."""
    classifier, pixels, found = attributions(family, "rollout")
    for image, attribution in zip(pixels, found, strict=True):
        plain = build(family)
        product = torch.eye(len(classifier.readout))
        for each in caught(plain, plain.blocks, image[None]):
            mixed = each[0].mean(dim=0) + torch.eye(len(product))
            product = mixed / mixed.sum(dim=-1, keepdim=True) @ product
        assert_shares(attribution, product[read_rows(plain)].mean(dim=0)[classifier.prefix :].detach())


@pytest.mark.parametrize("family", SEQUENCES)
def test_attention_is_what_the_head_gives_patches_in_the_last_block(family: str) -> None:
    classifier, pixels, found = attributions(family, "attention")
    for image, attribution in zip(pixels, found, strict=True):
        plain = build(family)
        (attention,) = caught(plain, plain.blocks[-1:], image[None])
        relevance = torch.zeros(found.shape[1])
        for head in attention[0]:
            relevance += head[read_rows(plain), classifier.prefix :].mean(dim=0)
        assert_shares(attribution, relevance.detach())


@pytest.mark.parametrize(("family", "explained"), [*((each, None) for each in SEQUENCES), ("vit", A_CLASS)])
@pytest.mark.parametrize("explanation", ["gradient-attention", "gradcam", "gradient-rollout"])
def test_gradient_explanations_are_those_of_autograd(
    explanation: str, family: str, explained: int | None
) -> None:
    classifier, pixels, found = attributions(family, explanation, explained=explained)
    for image, attribution in zip(pixels, found, strict=True):
        plain = build(family)
        maps = caught(plain, plain.blocks, image[None], explained=explained)
        rows, patches = read_rows(plain), slice(classifier.prefix, None)
        gradients: list[Any] = [each.grad for each in maps]
        if explanation == "gradient-attention":
            product = (maps[-1] * gradients[-1])[0].mean(dim=0).clamp(min=0)
            relevance = product[rows].mean(dim=0)[patches]
        elif explanation == "gradcam":
            relevance = torch.zeros(found.shape[1])
            for attention, gradient in zip(maps[-1][0], gradients[-1][0], strict=True):
                relevance += gradient[rows, patches].mean() * attention[rows, patches].mean(dim=0)
            relevance = relevance.clamp(min=0)
        else:
            identity = flow = torch.eye(len(classifier.readout))
            for each, gradient in zip(maps, gradients, strict=True):
                flow = flow + (each * gradient)[0].clamp(min=0).mean(dim=0) @ flow
            relevance = (flow - identity)[rows].mean(dim=0)[patches]
        assert_shares(attribution, relevance.detach())


@pytest.mark.parametrize("family", WINDOWS)
@pytest.mark.parametrize("explanation", ["attention", "gradient-attention", "gradcam"])
def test_windows_of_the_last_stage_are_put_back_on_its_grid(family: str, explanation: str) -> None:
    """Token by token: where it went when the grid was shifted, and what its window's queries gave it."""
    classifier, pixels, found = attributions(family, explanation)
    rows, columns = classifier.grid
    for image, attribution in zip(pixels, found, strict=True):
        plain = build(family)
        block = plain.layers[-1].blocks[-1]
        (maps,) = caught(plain, [block], image[None])
        gradient: Any = maps.grad
        if explanation == "attention":
            received = maps.mean(dim=(1, 2))
        elif explanation == "gradient-attention":
            received = (maps * gradient).mean(dim=1).clamp(min=0).mean(dim=1)
        else:
            weights = gradient.mean(dim=(0, 2, 3))
            received = torch.einsum("h,whts->ws", weights, maps).clamp(min=0)
        (high, wide), (down, right) = block.window_size, block.shift_size
        windows_across = -(-columns // wide)
        expected = torch.zeros(rows, columns)
        for r, c in itertools.product(range(rows), range(columns)):
            r_shifted, c_shifted = (r - down) % rows, (c - right) % columns
            window = r_shifted // high * windows_across + c_shifted // wide
            expected[r, c] = received[window, r_shifted % high * wide + c_shifted % wide]
        assert_shares(attribution, expected.flatten().detach())


@pytest.mark.parametrize(
    ("family", "explained"), [*((each, None) for each in OF_CLASS_TOKENS), ("vit", A_CLASS)]
)
def test_attribution_rollout_integrates_each_blocks_attention(family: str, explained: int | None) -> None:
    """Step by step through the whole block, of which all attention is scaled; all tokens' rows."""
    classifier, pixels, found = attributions(family, "attribution-rollout", explained=explained)
    for image, attribution in zip(pixels, found, strict=True):
        plain = build(family)
        target = int(plain(image[None]).argmax()) if explained is None else explained
        flow = torch.eye(len(classifier.readout))
        for block, tokens in zip(plain.blocks, _entering(plain, image[None]), strict=True):
            integral, attention = _integrated(plain, block, tokens, target=target)
            mixed = (attention * integral).amax(dim=0).clamp(min=0) + torch.eye(len(flow))
            flow = mixed / mixed.sum(dim=-1, keepdim=True) @ flow
        assert_shares(attribution, flow[0, classifier.prefix :])


def _entering(model: Any, pixels: Tensor) -> list[Tensor]:
    """What enters each block."""
    found: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda block, inputs: found.append(inputs[0].detach()))
        for block in model.blocks
    ]
    model(pixels)
    for hook in hooks:
        hook.remove()
    return found


def _integrated(model: Any, block: Any, tokens: Tensor, *, target: int) -> tuple[Tensor, Tensor]:
    """[heads, T, T]: the mean of 20 gradients of the class's logit, read from this block's output with its
    attention scaled; and that attention."""
    block.attn.fused_attn = False
    passed: list[Tensor] = []
    total: Any = 0
    for step in range(1, 21):

        def scale(module: object, inputs: object, output: Tensor, step: int = step) -> Tensor:
            scaled = (output * step / 20).detach().requires_grad_()
            passed.extend((output, scaled))
            return scaled

        hook = block.attn.attn_drop.register_forward_hook(scale)
        logits = model.forward_head(model.norm(block(tokens)))
        hook.remove()
        logits[0, target].backward()
        total = total + passed[-1].grad
    return total[0] / 20, passed[-2][0].detach()


def test_integrals_add_up_to_what_attention_does_to_the_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many steps: the logit read from a block's output, less that without its attention."""
    monkeypatch.setattr(integration, "STEPS", 8000)
    classifier = ExplainedClassifier(build("vit"), explanation="attribution-rollout", explained=5)
    pixels = torch.rand(2, 3, *classifier.size, generator=torch.Generator().manual_seed(4))
    model: Any = classifier.model
    with torch.no_grad():
        _, seen = classifier._caught(pixels)
        for block, integral in zip(model.blocks, seen["integrals"], strict=True):
            tokens = block.attn.entering
            seen_by_heads = block.attn(block.norm1(tokens))
            nothing = block.attn.attention.proj.bias.expand_as(seen_by_heads)
            logits = []
            for attended in (tokens + seen_by_heads, tokens + nothing):
                leaving = attended + block.mlp(block.norm2(attended))
                logits.append(model.forward_head(model.norm(leaving))[:, 5])
            assert torch.allclose(integral.sum(dim=(1, 2, 3)), logits[0] - logits[1], rtol=0.01, atol=1e-3)


def test_the_predicted_class_is_each_images_own() -> None:
    """Of a batch with several predictions each image gets what a classifier that explains its class gives."""
    classifier, pixels, found = attributions("vit", "gradient-rollout")
    images = pixels * classifier.std + classifier.mean
    with torch.no_grad():
        predicted = classifier(images)[0].argmax(dim=1).tolist()
        assert len(set(predicted)) > 1
        for number, label in enumerate(predicted):
            single = ExplainedClassifier(build("vit"), explanation="gradient-rollout", explained=label)
            assert torch.allclose(single(images)[1][number], found[number], atol=1e-6)


def test_where_nothing_is_relevant_all_patches_share_alike_in_the_graph_too(tmp_path: Path) -> None:
    class Sharing(torch.nn.Module):
        def forward(self, relevance: Tensor) -> Tensor:
            return normalised(relevance)

    relevance = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 1.0], [1e-20, 0.0, 0.0, 1e-20]])
    export_graph(Sharing(), {"relevance": relevance}, outputs=("attribution",), graph=tmp_path / "g.onnx")
    found = open_engine(tmp_path / "g.onnx", device="cpu").run({"relevance": relevance.numpy()})
    expected = [[0.25, 0.25, 0.25, 0.25], [0.0, 0.75, 0.0, 0.25], [0.5, 0.0, 0.0, 0.5]]
    assert found["attribution"].tolist() == expected
