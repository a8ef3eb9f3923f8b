"""A bundle whose networks cost next to nothing, so that what is around them can be measured and tried.

    python -m benchmarks.standin FOLDER

The denoiser cuts a copy to [0, 1]; the class is the strongest of red, green and blue, and the attribution is
what is bright. Everything else is as in any bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fvit.runtime.bundle import Manifest, seal, write_bundle

SIDE, GRID, BRIGHTER = 8, 4, 40.0
LABELS = ("red", "green", "blue")


def write_stand_in(folder: Path) -> Path:
    """Write the bundle; images of 8×8 pixels, 16 tokens."""
    manifest = Manifest(
        classifier="strongest-colour", denoiser="cut", labels=LABELS, image_size=(SIDE, SIDE),
        classifier_size=(SIDE, SIDE), grid=(GRID, GRID), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
        explanation="attention", precision="fp32", prediction="epsilon",
        alphas_cumprod=tuple(np.linspace(0.9999, 0.01, 100).tolist()), fractional_timesteps=True,
    )  # fmt: skip
    with write_bundle(folder) as part:
        onnx.save(_denoiser(), part / "denoiser.onnx")
        onnx.save(_classifier(), part / "classifier.onnx")
        seal(part, manifest)
    return folder


def _denoiser() -> onnx.ModelProto:
    nodes = [helper.make_node("Clip", ["noisy", "none", "one"], ["images"])]
    limits = [
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("none", 0), ("one", 1))
    ]
    rows: list[str | int] = ["batch"]
    image = [*rows, 3, SIDE, SIDE]
    return _model(
        nodes,
        limits,
        inputs={"noisy": image, "sigma": rows, "timestep": rows},
        outputs={"images": image},
    )


def _classifier() -> onnx.ModelProto:
    token = SIDE // GRID
    constants = {
        "across": np.array([2, 3]), "channel": np.array([1]), "flat": np.array([0, -1]),
        "brighter": np.array(BRIGHTER, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["images", "across"], ["logits"], keepdims=0),
        helper.make_node(
            "AveragePool", ["images"], ["pooled"], kernel_shape=[token] * 2, strides=[token] * 2
        ),
        helper.make_node("ReduceMean", ["pooled", "channel"], ["grey"], keepdims=0),
        helper.make_node("Reshape", ["grey", "flat"], ["tokens"]),
        helper.make_node("Mul", ["tokens", "brighter"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["attribution"], axis=1),
    ]
    return _model(
        nodes,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
        inputs={"images": ["batch", 3, SIDE, SIDE]},
        outputs={"logits": ["batch", len(LABELS)], "attribution": ["batch", GRID * GRID]},
    )


def _model(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    *,
    inputs: Mapping[str, Sequence[str | int]],
    outputs: Mapping[str, Sequence[str | int]],
) -> onnx.ModelProto:
    taken, given = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name, sides in tensors.items()]
        for tensors in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "stand-in", taken, given, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def pictures(count: int, *, seed: int) -> NDArray[np.uint8]:
    """[M,8,8,3]: images of one strong colour and some bright tokens each."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (count, SIDE, SIDE, 3), np.uint8)
    pixels[np.arange(count), :, :, np.arange(count) % 3] += 60
    return pixels


def main(folder: Annotated[Path, typer.Argument(help="Where the bundle is to lie.")]) -> None:
    write_stand_in(folder)


if __name__ == "__main__":
    typer.run(main)
