from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fvit.engines.base import weights_file
from fvit.engines.opening import open_engine
from fvit.engines.opsets import convert
from fvit.errors import FvitError
from fvit.export.graphs import export_graph
from fvit.runtime.bundle import CLASSIFIER, DENOISER, open_bundle

OPSET = 17


def _same(
    graph: Path, converted: Path, feeds: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
) -> None:
    assert max(entry.version for entry in onnx.load(converted).opset_import if not entry.domain) == OPSET
    onnx.checker.check_model(converted, full_check=True)
    expected, found = (open_engine(each, device="cpu").run(feeds) for each in (graph, converted))
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= 1e-5 * np.abs(value).max()


@pytest.mark.parametrize("pair", ["demo_bundle", "teacher_bundle"])
def test_the_demos_graphs_compute_the_same_in_an_older_opset(
    pair: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle: Path = request.getfixturevalue(pair)
    rng = np.random.default_rng(0)
    noisy = rng.normal(0.5, 0.3, (5, 3, 64, 64)).astype(np.float32)
    sigma = np.array([0.25, 0.12, 0.5, 1.0, 0.25], np.float32)
    timestep = open_bundle(bundle).manifest.schedule.timestep(sigma).astype(np.float32)
    feeds = {"noisy": noisy, "sigma": sigma, "timestep": timestep}
    convert(bundle / DENOISER, tmp_path / "denoiser.onnx", opset=OPSET, batch=5)
    _same(bundle / DENOISER, tmp_path / "denoiser.onnx", feeds)
    convert(bundle / CLASSIFIER, tmp_path / "classifier.onnx", opset=OPSET, batch=5)
    _same(bundle / CLASSIFIER, tmp_path / "classifier.onnx", {"images": noisy.clip(0, 1)})


@pytest.mark.parametrize(
    ("pair", "name"),
    [("demo_bundle", "denoiser"), ("teacher_bundle", "denoiser"), ("teacher_bundle", "classifier")],
)
def test_what_tensorrt_8_6_lacks_or_misreads_is_written_out(
    pair: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Its parser knows no Gelu, gives instance normalisation to a plug-in (which needs cuDNN), takes the
    whole shape for a part of it, and functions of one scalar are not for every 8.x."""
    bundle: Path = request.getfixturevalue(pair)
    convert(bundle / f"{name}.onnx", tmp_path / "old.onnx", opset=OPSET, batch=7)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "old.onnx"), data_prop=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    shapes = {v.name: [side.dim_value for side in v.type.tensor_type.shape.dim] for v in values}
    assert {node.op_type for node in graph.node} & {"Gelu", "InstanceNormalization", "Shape"} == set()
    unary = [node for node in graph.node if len(node.input) == 1]
    assert unary
    assert [node.name for node in unary if shapes[node.input[0]] == []] == []
    assert {shapes[value.name][0] for value in (*graph.input, *graph.output)} == {7}


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("half", [False, True])
def test_both_forms_of_gelu_are_written_out(approximate: str, half: bool, tmp_path: Path) -> None:
    class Curve(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kind = torch.float32

        def halve(self) -> None:
            self.kind = torch.float16

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.to(self.kind)
            return (torch.nn.functional.gelu(x, approximate=approximate) + x).float()

    x = 3 * torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    export_graph(Curve(), {"x": x}, outputs=("y",), graph=tmp_path / "g.onnx", half=half)
    convert(tmp_path / "g.onnx", tmp_path / "old.onnx", opset=OPSET, batch=5)
    operators = {node.op_type for node in onnx.load(tmp_path / "old.onnx").graph.node}
    assert "Gelu" not in operators
    expected, found = (
        open_engine(tmp_path / name, device="cpu").run({"x": x.numpy()})["y"]
        for name in ("g.onnx", "old.onnx")
    )
    assert np.abs(found - expected).max() <= (1e-2 if half else 1e-5)


def test_a_part_of_a_shape_that_is_not_known_is_cut_out_of_the_whole(tmp_path: Path) -> None:
    x = onnx.helper.make_tensor_value_info("x", 1, ["batch", 4])
    y = onnx.helper.make_tensor_value_info("y", 7, [1])
    nodes = [
        onnx.helper.make_node("NonZero", ["x"], ["where"]),
        onnx.helper.make_node("Shape", ["where"], ["y"], start=-1, end=2),
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    onnx.save(model, tmp_path / "g.onnx")
    convert(tmp_path / "g.onnx", tmp_path / "old.onnx", opset=OPSET, batch=3)
    shapes = [node for node in onnx.load(tmp_path / "old.onnx").graph.node if node.op_type == "Shape"]
    assert [{a.name: a.i for a in node.attribute} for node in shapes] in ([{}], [{"start": 0}])
    values = np.eye(3, 4, dtype=np.float32)
    assert open_engine(tmp_path / "old.onnx", device="cpu").run({"x": values})["y"] == [3]


def test_an_operator_without_an_older_form_is_one_clear_line(tmp_path: Path) -> None:
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [2, 3, 4, 4]) for name in "xy")
    node = onnx.helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=3)
    ones = [onnx.helper.make_tensor(name, 1, [3], [1.0] * 3) for name in "sb"]
    graph = onnx.helper.make_graph([node], "g", [x], [y], initializer=ones)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(FvitError, match="cannot be written in opset 17") as caught:
        convert(tmp_path / "g.onnx", tmp_path / "old.onnx", opset=OPSET, batch=5)
    assert "\n" not in str(caught.value)


def test_weights_beside_a_graph_stay_beside_it(demo_bundle: Path, tmp_path: Path) -> None:
    """As graphs over 2 GB have them; the new graph finds them in its own folder."""
    graph, converted = tmp_path / "classifier.onnx", tmp_path / "old" / "classifier.onnx"
    whole = onnx.load(demo_bundle / CLASSIFIER)
    onnx.save(whole, graph, save_as_external_data=True, location=weights_file(graph).name)
    converted.parent.mkdir()
    convert(graph, converted, opset=OPSET, batch=5)
    assert converted.stat().st_size < weights_file(converted).stat().st_size / 5
    _same(graph, converted, {"images": np.random.default_rng(0).random((3, 3, 64, 64), np.float32)})
