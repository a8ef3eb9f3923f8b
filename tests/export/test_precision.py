from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

import fvit
from fvit.certificates.claims import top_tokens
from fvit.demo.data import compositions
from fvit.engines import processor
from fvit.engines.opening import open_engine
from fvit.errors import FvitError
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.graphs import export_graph
from fvit.export.precision import Feeds, halve, quantise
from fvit.runtime.loading import ON_CPU
from fvit.runtime.noise import noisy_copies
from tests.export.families import FAMILIES, build


@pytest.mark.parametrize(
    "explanation",
    ["rollout", "gradient-rollout", "attribution-rollout", "transformer-attribution"],
)
def test_a_half_precision_graph_stays_near_fp32_torch(explanation: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64)
    # Of weights without training many classes are next to the largest: half precision may choose another.
    label = None if explanation == "rollout" else 3
    explained = ExplainedClassifier(model, explanation=explanation, explained=label)
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    graph = tmp_path / "half.onnx"
    error = export_graph(
        explained,
        {"images": images},
        outputs=("logits", "attribution"),
        graph=graph,
        backward=explained.needs_gradients,
        half=True,
    )
    assert 1e-6 < error <= 2e-2
    written = onnx.load(graph)
    assert all(v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for v in written.graph.output)
    matrices = [t for t in written.graph.initializer if len(t.dims) == 2 and min(t.dims) > 64]
    assert matrices
    assert {t.data_type for t in matrices} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(
    ("family", "explanation"),
    [("vit", "gradcam"), ("vit", "lrp"), ("swin", "gradcam"), ("swin", "lrp"), ("swinv2", "attention")],
)
def test_explanations_of_the_last_block_export_in_half_precision_too(
    family: str, explanation: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    name, options = FAMILIES[family]
    model = timm.create_model(name, **options)
    label = None if explanation == "attention" else 3
    explained = ExplainedClassifier(model, explanation=explanation, explained=label)
    images = torch.rand(3, 3, *explained.size, generator=torch.Generator().manual_seed(0))
    error = export_graph(
        explained, {"images": images}, outputs=("logits", "attribution"), graph=tmp_path / "half.onnx",
        backward=explained.needs_gradients, half=True,
    )  # fmt: skip
    assert 1e-6 < error <= 2e-2


def test_windows_are_quantised_too(tmp_path: Path) -> None:
    explained = ExplainedClassifier(build("swin"), explanation="gradcam", explained=3)
    images = torch.rand(4, 3, *explained.size, generator=torch.Generator().manual_seed(0))
    graph = tmp_path / "g.onnx"
    export_graph(explained, {"images": images}, outputs=("logits", "attribution"), graph=graph, backward=True)
    result = quantise(graph, [{"images": images.numpy()}])
    assert 0 < result.error <= 0.1
    assert len(result.floats) < result.layers
    assert _integer_weights(graph) >= result.layers - len(result.floats)


@pytest.mark.parametrize("explanation", ["gradcam", "lrp", "attribution-rollout", "transformer-attribution"])
def test_an_explained_classifier_is_quantised_whole_or_nearly(explanation: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64, embed_dim=48, num_classes=10)
    explained = ExplainedClassifier(model, explanation=explanation, explained=3)
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    graph = tmp_path / "g.onnx"
    export_graph(explained, {"images": images}, outputs=("logits", "attribution"), graph=graph, backward=True)
    feeds = [{"images": images.numpy()}, {"images": 1 - images.numpy()}]
    expected = open_engine(graph, device="cpu").run(feeds[0])
    result = quantise(graph, feeds)
    found = open_engine(graph, device="cpu").run(feeds[0])
    assert 0 < result.error <= 0.05
    assert len(result.floats) <= result.layers // 2
    assert _integer_weights(graph) >= result.layers - len(result.floats)
    for name, value in expected.items():
        assert np.sqrt(np.mean((found[name] - value) ** 2) / np.mean(value**2)) <= 0.05


def test_norms_of_large_values_do_not_overflow_in_half_precision() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    values = 2e3 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(values)
        halve(network)
        found = network(values.half())
    assert found.dtype == torch.float16
    assert torch.allclose(found.float(), expected, atol=2e-2 * float(expected.abs().max()))


class Chain(nn.Module):
    """Two convolutions and a matrix; the first convolution's input has one huge outlier channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.first.weight[:, 0] *= 1e-3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean(dim=(2, 3)))


def _exported_chain(graph: Path, *, outlier: float) -> list[Feeds]:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(8, 4, 6, 6, generator=generator) for _ in range(4)]
    for batch in batches:
        batch[:, 0] *= outlier
    export_graph(Chain().eval(), {"x": batches[0]}, outputs=("y",), graph=graph)
    return [{"x": batch.numpy()} for batch in batches]


def _integer_weights(graph: Path) -> int:
    """Convolutions and products whose weights pass a pair of quantisation nodes."""
    model = onnx.load(graph)
    pairs = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    weighted = [n for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")]
    return sum(node.input[0] in pairs and node.input[1] in pairs for node in weighted)


def test_int8_quantises_every_layer_where_that_is_cheap(tmp_path: Path) -> None:
    feeds = _exported_chain(tmp_path / "g.onnx", outlier=1.0)
    expected = open_engine(tmp_path / "g.onnx", device="cpu").run(feeds[1])["y"]
    result = quantise(tmp_path / "g.onnx", feeds)
    assert (result.floats, result.layers) == ((), 3)
    assert _integer_weights(tmp_path / "g.onnx") == 3
    found = open_engine(tmp_path / "g.onnx", device="cpu").run(feeds[1])["y"]
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 0 < error <= 0.05


def test_the_layer_that_int8_hurts_stays_in_float(tmp_path: Path) -> None:
    """The outlier takes the whole range of the first convolution's input: its other channels vanish."""
    feeds = _exported_chain(tmp_path / "g.onnx", outlier=1e4)
    tried: list[tuple[int, int]] = []
    result = quantise(tmp_path / "g.onnx", feeds, on_layer=lambda done, of: tried.append((done, of)))
    assert tried == [(1, 3), (2, 3), (3, 3)]
    assert len(result.floats) == 1
    model = onnx.load(tmp_path / "g.onnx")
    (first,) = [n for n in model.graph.node if n.name == result.floats[0]]
    assert first.input[0] == "x"
    assert _integer_weights(tmp_path / "g.onnx") == 2
    assert result.error <= 0.05


class Joined(nn.Module):
    """A layer that reads what two others made, side by side, as the shortcuts of a UNet do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.both = (nn.Conv2d(inputs, 8, 1) for inputs in (3, 3, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined: torch.Tensor = self.both(torch.cat([self.one(x), self.other(x)], dim=1))
        return joined


def test_a_layer_that_reads_a_concatenation_stays_in_float(tmp_path: Path) -> None:
    """OpenVINO 2026.4 computes it wrongly in int8: of the embedded denoiser's images half was error."""
    graph, x = tmp_path / "g.onnx", torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    export_graph(Joined().eval(), {"x": x}, outputs=("y",), graph=graph)
    result = quantise(graph, [{"x": x.numpy()}])
    (last,) = [node for node in onnx.load(graph).graph.node if node.name in result.floats]
    assert (last.input[0], result.layers, _integer_weights(graph)) == ("cat", 3, 2)


class Shared(nn.Module):
    """Two products with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weights).relu() @ self.weights


def test_layers_that_share_weights_are_quantised_each_with_its_own(tmp_path: Path) -> None:
    graph, x = tmp_path / "g.onnx", torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    export_graph(Shared().eval(), {"x": x}, outputs=("y",), graph=graph)
    expected = open_engine(graph, device="cpu").run({"x": x.numpy()})["y"]
    assert quantise(graph, [{"x": x.numpy()}]).layers == 2
    written = onnx.load(graph)
    quantised = [node.input[0] for node in written.graph.node if node.op_type == "QuantizeLinear"]
    weights = {tensor.name for tensor in written.graph.initializer}
    assert len({name for name in quantised if name in weights}) == 2
    found = open_engine(graph, device="cpu").run({"x": x.numpy()})["y"]
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) <= 0.05


def test_weights_in_a_second_file_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = _exported_chain(tmp_path / "one.onnx", outlier=1.0)
    quantise(tmp_path / "one.onnx", feeds)
    monkeypatch.setattr("fvit.export.graphs.INLINE", 0)
    (tmp_path / "two").mkdir()
    _exported_chain(tmp_path / "two" / "g.onnx", outlier=1.0)
    assert [file.name for file in sorted((tmp_path / "two").iterdir())] == ["g.onnx", "g.onnx.data"]
    quantise(tmp_path / "two" / "g.onnx", feeds)
    assert [file.name for file in sorted((tmp_path / "two").iterdir())] == ["g.onnx", "g.onnx.data"]
    first, second = (
        open_engine(file, device="cpu").run(feeds[0])["y"]
        for file in (tmp_path / "one.onnx", tmp_path / "two" / "g.onnx")
    )
    assert np.array_equal(first, second)


def test_int8_that_cannot_be_had_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = _exported_chain(tmp_path / "g.onnx", outlier=1.0)
    monkeypatch.setattr("fvit.export.precision.LARGEST_INT8_ERROR", 1e-6)
    with pytest.raises(FvitError, match=r"off by .* all but one of its layers in float"):
        quantise(tmp_path / "g.onnx", feeds)


def test_products_of_int8_do_not_overflow_and_are_the_same_on_every_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest values that int8 has, of one sign: any two products of them are too many for 16 bits where
    one factor is without a sign."""
    layer = nn.Linear(64, 8, bias=False)
    nn.init.ones_(layer.weight)
    graph, x = tmp_path / "g.onnx", torch.ones(8, 64)
    export_graph(layer.eval(), {"x": x}, outputs=("y",), graph=graph)
    quantise(graph, [{"x": x.numpy()}])
    found = open_engine(graph, device="cpu").run({"x": x.numpy()})["y"]
    assert np.abs(found - 64).max() <= 0.01 * 64
    described = tmp_path / "cpuinfo"
    described.write_text("flags : fma avx avx2\n")
    monkeypatch.setattr(processor, "DESCRIBED", described)
    assert np.array_equal(open_engine(graph, device="cpu").run({"x": x.numpy()})["y"], found)


@pytest.mark.parametrize("device", ON_CPU)
def test_a_certificate_of_int8_is_the_same_in_every_batch_and_company(
    device: str, int8_bundle: Path, samples: list[Path]
) -> None:
    if device == "openvino":
        pytest.importorskip("openvino")
    with fvit.load(int8_bundle, device=device, batch=1) as low:
        alone = low.certify(samples[0], n=60, alpha=0.1, seed=3)
    with fvit.load(int8_bundle, device=device, batch=7) as low, ThreadPoolExecutor(4) as pool:
        company = pool.map(lambda image: low.certify(image, n=60, alpha=0.1, seed=3), samples[:4])
        together = next(iter(company))
    one, other = (each.to_dict() | {"seconds": None} for each in (alone, together))
    assert one == other


@pytest.mark.parametrize("device", ON_CPU)
def test_int8_demo_agrees_with_fp32(device: str, vit: fvit.FaithfulViT, int8_bundle: Path) -> None:
    """The short form of benchmarks/precision.py: one noisy copy of each of 100 held-out images."""
    if device == "openvino":
        pytest.importorskip("openvino")
        if not processor.has("vnni"):
            pytest.skip("OpenVINO may let products of int8 overflow on this processor")
    low = fvit.load(int8_bundle, device=device)
    assert low.bundle.manifest.precision == "int8"
    pictures = [vit.read(image).pixels for image in compositions(100, seed=31, split="held-out").images]
    copies = np.concatenate(
        [noisy_copies(pixels, range(i, i + 1), sigma=0.25, key=0) for i, pixels in enumerate(pictures)]
    )
    sigma = np.full(len(copies), 0.25, np.float32)
    (logits, attribution), (low_logits, low_attribution) = (
        each.pipeline(copies, sigma=sigma) for each in (vit, low)
    )
    assert (logits.argmax(axis=1) == low_logits.argmax(axis=1)).mean() >= 0.98
    kept = [
        len(set(top_tokens(a, 10)) & set(top_tokens(b, 10))) / 10
        for a, b in zip(attribution, low_attribution, strict=True)
    ]
    assert np.mean(kept) >= 0.95


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    from fvit.export.bundles import export_demo

    with pytest.raises(FvitError, match="fp32, fp16, int8"):
        export_demo(tmp_path / "b", precision="int4")
    assert not (tmp_path / "b").exists()
