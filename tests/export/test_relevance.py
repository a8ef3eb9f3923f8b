"""Relevance against a second propagation: in double precision, image by image, every product of every linear
map written out, through forward passes that are written down here once more, from the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fvit.errors import FvitError
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.explanations.propagation import propagate
from fvit.export.explanations.tape import Tape
from tests.export.families import WINDOWS, build, caught, read_rows

SEQUENCES = ["vit", "deit-distilled", "beit", "dinov2-registers", "eva02"]


class Value:
    """A tensor of one image, which knows what it was made of and how relevance goes back to that."""

    def __init__(self, data: Tensor, *parents: Value, back: Callable[[Tensor], list[Tensor]] | None = None):
        self.data, self.parents, self.back = data, parents, back
        self.relevance = torch.zeros_like(data)

    def explain(self, relevance: Tensor) -> None:
        """Give relevance to this value, and so to everything that it was made of."""
        self.relevance = relevance
        order: list[Value] = []

        def visit(value: Value) -> None:
            if value not in order:
                for parent in value.parents:
                    visit(parent)
                order.append(value)

        visit(self)
        for value in reversed(order):
            if value.back is not None:
                for parent, share in zip(value.parents, value.back(value.relevance), strict=True):
                    parent.relevance = parent.relevance + share


def quotient(relevance: Tensor, values: Tensor) -> Tensor:
    damping = (0.01 * values.pow(2).mean().sqrt()) ** 2
    return relevance / (values + damping / values)


def same(x: Value, function: Callable[[Tensor], Tensor]) -> Value:
    return Value(function(x.data), x, back=lambda relevance: [relevance])


def moved(x: Value, function: Callable[[Tensor], Tensor]) -> Value:
    places = function(torch.arange(x.data.numel()).reshape(x.data.shape))

    def back(relevance: Tensor) -> list[Tensor]:
        share = torch.zeros(x.data.numel(), dtype=torch.float64)
        return [share.index_add(0, places.flatten(), relevance.flatten()).reshape(x.data.shape)]

    return Value(function(x.data), x, back=back)


def linear(x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    def back(relevance: Tensor) -> list[Tensor]:
        rows = []
        tokens, outputs = (each.reshape(-1, each.shape[-1]) for each in (x.data, relevance))
        for token, given in zip(tokens, outputs, strict=True):
            products = (weight * token).clamp(min=0)
            totals = products.sum(dim=1, keepdim=True)
            shares = torch.where(totals > 0, products / totals, 0.0)
            rows.append((given[:, None] * shares).sum(dim=0))
        return [torch.stack(rows).reshape(x.data.shape)]

    return Value(F.linear(x.data, weight, bias), x, back=back)


def matmul(a: Value, b: Value) -> Value:
    """[H,I,K] by [H,K,J]."""
    result = a.data @ b.data

    def back(relevance: Tensor) -> list[Tensor]:
        shared = quotient(relevance, result) / 2
        left, right = torch.zeros_like(a.data), torch.zeros_like(b.data)
        for h in range(len(result)):
            for k in range(a.data.shape[2]):
                terms = a.data[h, :, k, None] * b.data[h, k] * shared[h]
                left[h, :, k], right[h, k] = terms.sum(dim=1), terms.sum(dim=0)
        return [left, right]

    return Value(result, a, b, back=back)


def add(a: Value, b: Value) -> Value:
    def back(relevance: Tensor) -> list[Tensor]:
        shared = quotient(relevance, a.data + b.data)
        terms = [a.data * shared, b.data * shared]
        magnitude = sum(term.sum().abs() for term in terms)
        return [term / term.sum() * (term.sum().abs() / magnitude * relevance.sum()) for term in terms]

    return Value(a.data + b.data, a, b, back=back)


def gated(a: Value, b: Value) -> Value:
    return Value(a.data * b.data, a, b, back=lambda relevance: [relevance / 2, relevance / 2])


def average(x: Value, dims: tuple[int, ...]) -> Value:
    result = x.data.mean(dim=dims)
    count = x.data.numel() // result.numel()
    return Value(result, x, back=lambda relevance: [x.data / count * quotient(relevance, result)])


def _rotated(x: Value, sine: Tensor, cosine: Tensor) -> Value:
    """Rotary embedding of pairs (x0, x1) -> (x0 cos − x1 sin, x1 cos + x0 sin)."""
    swapped = moved(x, lambda v: v.unflatten(-1, (-1, 2)).flip(-1).flatten(-2))
    signs = torch.tensor([-1.0, 1.0]).repeat(x.data.shape[-1] // 2)
    return add(same(x, lambda v: v * cosine), same(swapped, lambda v: v * signs * sine))


def _block(model: Any, block: Any, x: Value) -> tuple[Value, Value]:
    """What leaves a block, and its attention [H,T,T]."""
    attention, heads = block.attn, block.attn.num_heads
    normed = same(x, block.norm1)
    if attention.qkv is None:
        parts = [linear(normed, each.weight, each.bias) for each in
                 (attention.q_proj, attention.k_proj, attention.v_proj)]  # fmt: skip
    else:
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        together = linear(normed, attention.qkv.weight, bias)
        parts = [moved(together, lambda v, i=i: v.chunk(3, dim=-1)[i]) for i in range(3)]  # type: ignore[misc]
    q, k, v = (moved(part, lambda t: t.unflatten(-1, (heads, -1)).transpose(0, 1)) for part in parts)
    if getattr(model, "rope", None) is not None:
        sine, cosine = model.rope.get_embed().chunk(2, dim=-1)
        prefix = int(model.num_prefix_tokens)
        q, k = (
            _joined(
                moved(t, lambda d: d[:, :prefix]), _rotated(moved(t, lambda d: d[:, prefix:]), sine, cosine)
            )
            for t in (q, k)
        )
    scores = matmul(same(q, lambda t: t * attention.scale), moved(k, lambda t: t.transpose(1, 2)))
    bias = attention._get_rel_pos_bias()[0] if hasattr(attention, "_get_rel_pos_bias") else 0.0
    probabilities = same(scores, lambda t: (t + bias).softmax(dim=-1))
    merged = moved(matmul(probabilities, v), lambda t: t.transpose(0, 1).flatten(1))
    merged = same(merged, getattr(attention, "norm", torch.nn.Identity()))
    out = linear(merged, attention.proj.weight, attention.proj.bias)
    x = add(x, same(out, lambda t: t * _gamma(block, 1)))
    return add(x, same(_mlp(block.mlp, same(x, block.norm2)), lambda t: t * _gamma(block, 2))), probabilities


def _gamma(block: Any, number: int) -> Any:
    scale = getattr(block, f"gamma_{number}", None)
    return getattr(getattr(block, f"ls{number}", None), "gamma", 1.0) if scale is None else scale


def _joined(a: Value, b: Value) -> Value:
    cut = a.data.shape[1]
    return Value(torch.cat([a.data, b.data], dim=1), a, b, back=lambda r: [r[:, :cut], r[:, cut:]])


def _mlp(mlp: Any, x: Value) -> Value:
    hidden = linear(x, mlp.fc1.weight, mlp.fc1.bias)
    if type(mlp).__name__ == "GluMlp":
        gate, value = (moved(hidden, lambda v, i=i: v.chunk(2, dim=-1)[i]) for i in range(2))  # type: ignore[misc]
        hidden = same(gated(same(gate, mlp.act), value), mlp.norm)
    else:
        hidden = same(hidden, mlp.act)
    return linear(hidden, mlp.fc2.weight, mlp.fc2.bias)


def _logits(model: Any, x: Value) -> Value:
    x = same(x, model.norm)
    if hasattr(model, "head_dist"):
        both = [linear(moved(x, lambda v, i=i: v[i]), head.weight, head.bias)  # type: ignore[misc]
                for i, head in enumerate((model.head, model.head_dist))]  # fmt: skip
        return same(add(*both), lambda v: v / 2)
    rows = read_rows(model)
    read = moved(x, lambda v: v[rows])
    pooled = average(read, (0,)) if len(read.data) > 1 else moved(read, lambda v: v[0])
    return linear(same(pooled, model.fc_norm), model.head.weight, model.head.bias)


def _relevances(model: Any, image: Tensor, *, explained: int | None) -> tuple[list[Tensor], Tensor]:
    """Of every block's attention [H,T,T], and the logits [C]."""
    entering: list[Tensor] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda block, inputs: entering.append(inputs[0][0]))
    x, maps = model(image[None]), []
    hook.remove()
    x = Value(entering[0].detach())
    for block in model.blocks:
        x, attention = _block(model, block, x)
        maps.append(attention)
    logits = _logits(model, x)
    target = int(logits.data.argmax()) if explained is None else explained
    logits.explain(torch.eye(len(logits.data), dtype=torch.float64)[target])
    return [each.relevance for each in maps], logits.data


@pytest.mark.parametrize(("family", "explained"), [*((each, None) for each in SEQUENCES), ("vit", 4)])
@torch.no_grad()
def test_relevance_of_attention_is_that_of_the_second_propagation(family: str, explained: int | None) -> None:
    both = {
        name: ExplainedClassifier(build(family), explanation=name, explained=explained)
        for name in ("lrp", "transformer-attribution")
    }
    images = torch.rand(2, 3, *both["lrp"].size, generator=torch.Generator().manual_seed(3))
    plain = build(family).double()
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    pixels = (images.double() - both["lrp"].mean) / both["lrp"].std
    found = {name: classifier(images) for name, classifier in both.items()}
    rows, patches = read_rows(plain), slice(int(plain.num_prefix_tokens), None)
    for number, image in enumerate(pixels):
        relevances, logits = _relevances(plain, image, explained=explained)
        assert torch.allclose(found["lrp"][0][number].double(), logits, rtol=1e-4, atol=1e-4)
        last = relevances[-1].clamp(min=0).mean(dim=0)
        identity = flow = torch.eye(last.shape[0], dtype=torch.float64)
        with torch.enable_grad():
            gradients = [each.grad for each in caught(plain, plain.blocks, image[None], explained=explained)]
        for relevance, gradient in zip(relevances, gradients, strict=True):
            assert gradient is not None
            flow = flow + (relevance * gradient[0]).clamp(min=0).mean(dim=0) @ flow
        for name, matrix in (("lrp", last), ("transformer-attribution", flow - identity)):
            expected = matrix[rows].mean(dim=0)[patches]
            expected = expected / expected.sum()
            error = (found[name][1][number] - expected).abs().max() / expected.max()
            assert error <= 1e-4, name


@pytest.mark.parametrize("family", WINDOWS)
@torch.no_grad()
def test_relevance_of_attention_in_windows_is_that_of_the_second_propagation(family: str) -> None:
    classifier = ExplainedClassifier(build(family), explanation="lrp")
    images = torch.rand(2, 3, *classifier.size, generator=torch.Generator().manual_seed(3))
    _, found = classifier(images)
    plain = build(family).double()
    block = plain.layers[-1].blocks[-1]
    (high, wide), (down, right) = block.window_size, block.shift_size
    rows, columns = classifier.grid
    windows_across = -(-columns // wide)
    places = {
        (r, c): ((r - down) % rows // high * windows_across + (c - right) % columns // wide,
                 (r - down) % rows % high * wide + (c - right) % columns % wide)
        for r in range(rows) for c in range(columns)
    }  # fmt: skip
    for image, attribution in zip((images.double() - classifier.mean) / classifier.std, found, strict=True):
        maps, leaving = _windows(plain, block, image, places)
        x = same(leaving, plain.norm)
        logits = linear(average(x, (0, 1)), plain.head.fc.weight, plain.head.fc.bias)
        logits.explain(torch.eye(7, dtype=torch.float64)[int(logits.data.argmax())])
        received = [each.relevance.clamp(min=0).mean(dim=(0, 1)) for each in maps]
        expected = torch.stack([received[window][place] for window, place in places.values()])
        expected = expected / expected.sum()
        assert (attribution - expected).abs().max() <= 1e-4 * expected.max()


def _windows(
    model: Any, block: Any, image: Tensor, places: dict[tuple[int, int], tuple[int, int]]
) -> tuple[list[Value], Value]:
    """The attention of each window [H,T,T], and what leaves the last block [rows, columns, C]."""
    inside: list[Tensor] = []
    block.attn.fused_attn = False
    hooks = [
        block.register_forward_pre_hook(lambda block, inputs: inside.append(inputs[0][0])),
        block.attn.register_forward_pre_hook(lambda attention, inputs: inside.append(inputs[0])),
        block.attn.attn_drop.register_forward_hook(lambda drop, inputs, output: inside.append(output)),
    ]
    model(image[None])
    for hook in hooks:
        hook.remove()
    entering, tokens, attention = inside
    maps, given = [], []
    for window, seen in zip(tokens, attention, strict=True):
        values = (window @ block.attn.qkv.weight.T).chunk(3, dim=-1)[2] + _value_bias(block.attn)
        maps.append(Value(seen))
        product = matmul(maps[-1], Value(values.unflatten(-1, (len(seen), -1)).transpose(0, 1)))
        merged = moved(product, lambda t: t.transpose(0, 1).flatten(1))
        given.append(linear(merged, block.attn.proj.weight, block.attn.proj.bias))

    def back(relevance: Tensor) -> list[Tensor]:
        shares = [torch.zeros_like(each.data) for each in given]
        for (r, c), (window, place) in places.items():
            shares[window][place] = relevance[r, c]
        return shares

    placed = torch.stack([given[window].data[place] for window, place in places.values()])
    attended = Value(placed.reshape(entering.shape), *given, back=back)
    x = Value(entering)
    if type(block).__name__ == "SwinTransformerV2Block":
        x = add(x, same(attended, block.norm1))
        return maps, add(x, same(_mlp(block.mlp, x), block.norm2))
    x = add(x, attended)
    return maps, add(x, _mlp(block.mlp, same(x, block.norm2)))


def _value_bias(attention: Any) -> Tensor:
    bias = attention.qkv.bias
    return attention.v_bias if bias is None else bias.chunk(3)[2]


class Small(torch.nn.Module):
    """y = W (A v) + b, with everything given."""

    def forward(self, values: Tensor) -> Tensor:
        self.attention = torch.tensor([[[0.25, 0.75]]]) * values.new_ones(1) + 0 * values.sum()
        both = self.attention @ values
        return F.linear(both[:, 0], torch.tensor([[1.0, 1.0], [2.0, -1.0]]), torch.tensor([9.0, 9.0]))


def test_relevance_of_a_product_by_hand() -> None:
    """v = (4, 8), (4, 0), so that Av = (4, 2). The second output is made by 2·4 alone, as −1·2 counts for
    nothing: all of its relevance goes to Av's 4 = ¼·4 + ¾·4, and half of that to the attention."""
    small, values = Small(), torch.tensor([[[4.0, 8.0], [4.0, 0.0]]])
    with Tape(values) as tape:
        logits = small(values)
    assert logits.tolist() == [[15.0, 15.0]]
    (found,) = propagate(
        tape.calls, logits=logits, seeds=torch.tensor([[0.0, 1.0]]), maps=[small.attention], model="small"
    )
    assert torch.allclose(found, torch.tensor([[[0.125, 0.375]]]), rtol=1e-3)
    (found,) = propagate(
        tape.calls, logits=logits, seeds=torch.tensor([[1.0, 0.0]]), maps=[small.attention], model="small"
    )
    # 4/6 to the 4, in halves of ¼ and ¾; 2/6 to the 2 = ¼·8 + ¾·0.
    expected = torch.tensor([[[4 / 6 / 2 / 4 + 2 / 6 / 2, 4 / 6 / 2 * 3 / 4]]])
    assert torch.allclose(found, expected, rtol=1e-3)


def test_relevance_of_a_sum_of_opposite_terms_by_hand() -> None:
    """−1 + 3 = 2: a quarter of the magnitude is that of −1, which gets a quarter of the relevance, not −½."""
    values = torch.tensor([[[-4.0], [0.0]]])
    with Tape(values) as tape:
        attention = torch.tensor([[[0.25, 0.75]]]) + 0 * values.sum()
        logits = (attention @ values)[:, 0] + (values[:, 0] + 7)
    assert logits.tolist() == [[2.0]]
    (found,) = propagate(tape.calls, logits=logits, seeds=torch.ones(1, 1), maps=[attention], model="small")
    assert torch.allclose(found, torch.tensor([[[0.125, 0.0]]]), rtol=1e-3)


def test_a_computation_without_a_rule_is_refused_with_the_model_and_the_operator() -> None:
    values = torch.ones(1, 2, 2)
    with Tape(values) as tape:
        attention = values.softmax(dim=-1)
        logits = (attention @ values).cumsum(dim=1)[:, 0]
    with pytest.raises(FvitError, match="vit_of_mine computes with cumsum, which relevance has no rule for"):
        propagate(tape.calls, logits=logits, seeds=torch.ones(1, 2), maps=[attention], model="vit_of_mine")
