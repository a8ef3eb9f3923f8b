import hashlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pydantic import ValidationError

from fvit.commands import Interrupted
from fvit.engines.base import Engine, Tensor
from fvit.errors import FvitError
from fvit.runtime.bundle import Bundle, Manifest, check_graphs, open_bundle, seal, write_bundle

MANIFEST = Manifest(
    classifier="c", denoiser="d", labels=("a", "b"), image_size=(8, 8), classifier_size=(16, 16), grid=(2, 3),
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), explanation="attention", precision="fp32",
    prediction="epsilon", alphas_cumprod=(0.9, 0.5), fractional_timesteps=True,
)  # fmt: skip


def write(folder: Path) -> Path:
    with write_bundle(folder) as temporary:
        (temporary / "denoiser.onnx").write_bytes(b"x" * 100)
        (temporary / "classifier.onnx").write_bytes(b"y" * 100)
        seal(temporary, MANIFEST)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "b")


def fields_of(bundle: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((bundle / "fvit.json").read_text()))


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = fields_of(bundle)
    change(fields)
    (bundle / "fvit.json").write_text(json.dumps(fields))


def refusal(bundle: Path) -> str:
    """The one line with which a bundle is refused."""
    with pytest.raises(FvitError) as caught:
        open_bundle(bundle)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "edm", "flow", "consistency"])
def test_a_manifest_names_the_family_of_its_denoiser(bundle: Path, prediction: str) -> None:
    rewrite(bundle, lambda fields: fields.update(prediction=prediction))
    assert open_bundle(bundle).manifest.prediction == prediction


@pytest.mark.parametrize("explained", [None, "predicted", 0, 1])
def test_a_manifest_says_which_class_is_explained(bundle: Path, explained: str | int | None) -> None:
    rewrite(bundle, lambda fields: fields.update(explained=explained))
    assert open_bundle(bundle).manifest.explained == explained


def test_what_was_written_is_read_back(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.model_copy(update={"files": {}}) == MANIFEST
    assert set(opened.manifest.files) == {"denoiser.onnx", "classifier.onnx"}
    assert opened.digest == hashlib.sha256((bundle / "fvit.json").read_bytes()).hexdigest()
    assert opened.manifest.tokens == 6


@pytest.mark.parametrize("label", ["Þorn", "two\nlines", "[bold]markup[/]", "line\u2028separator", ""])
def test_a_label_may_be_any_text(bundle: Path, label: str) -> None:
    seal_again(bundle, MANIFEST.model_copy(update={"labels": ("a", label)}))
    assert open_bundle(bundle).manifest.labels == ("a", label)


def seal_again(bundle: Path, manifest: Manifest) -> None:
    (bundle / "fvit.json").unlink()
    seal(bundle, manifest)


@pytest.mark.parametrize("name", ["denoiser.onnx", "classifier.onnx"])
def test_one_flipped_byte_names_the_file(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[50] ^= 1
    (bundle / name).write_bytes(data)
    assert f"{name} was changed" in refusal(bundle)


def test_a_missing_file_names_it(bundle: Path) -> None:
    (bundle / "classifier.onnx").unlink()
    assert "classifier.onnx cannot be read" in refusal(bundle)


@pytest.mark.parametrize("place", ["absent", "empty", "file", "nul\0byte", "n" * 300])
def test_what_is_no_bundle_is_refused_in_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    line = refusal(tmp_path / place)
    assert "fvit-export demo" in line or "File name too long" in line


def test_an_older_format_is_refused_with_the_command_that_makes_a_new_bundle(bundle: Path) -> None:
    rewrite(bundle, lambda fields: fields.update(format=1))
    line = refusal(bundle)
    assert "bundle format 1, this fvit reads format 2" in line
    assert f"fvit-export demo {bundle}" in line and f"fvit-export model {bundle}" in line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f.pop("format"), "format"),
        (lambda f: f.update(format=2.0), "format"),
        (lambda f: f.update(format=True), "format"),
        (lambda f: f.update(format="2"), "format"),
        (lambda f: f.update(surprise=1), "surprise"),
        (lambda f: f.update({"sur\nprise": 1}), r"sur\nprise"),
        (lambda f: f.pop("grid"), "grid"),
        (lambda f: f.update(labels="ab"), "labels"),
        (lambda f: f.update(labels=["a"]), "labels"),
        (lambda f: f.update(labels=["a", 7]), "labels[1]"),
        (lambda f: f.update(labels=["a", "\ud800"]), "labels[1]"),
        (lambda f: f.update(image_size=[8]), "image_size"),
        (lambda f: f.update(image_size=[8, 0]), "image_size[1]"),
        (lambda f: f.update(image_size=[8, 10**9]), "image_size[1]"),
        (lambda f: f.update(image_size=[8, 8.0]), "image_size[1]"),
        (lambda f: f.update(image_size=[True, 8]), "image_size[0]"),
        (lambda f: f.update(grid=[17, 2]), "classifier_size"),
        (lambda f: f.update(mean=[0.5]), "mean"),
        (lambda f: f.update(std=[0.5, 0, 0.5]), "std[1]"),
        (lambda f: f.update(std=[0.5, float("nan"), 0.5]), "std[1]"),
        (lambda f: f.update(mean=[0.5, float("inf"), 0.5]), "mean[1]"),
        (lambda f: f.update(explanation=""), "explanation"),
        (lambda f: f.update(explained=2), "explained 2 is the index of none of 2 labels"),
        (lambda f: f.update(explained=-1), "explained"),
        (lambda f: f.update(explained=True), "explained"),
        (lambda f: f.update(explained="a"), "explained"),
        (lambda f: f.update(classifier="\udfff"), "classifier"),
        (lambda f: f.update(precision="fp64"), "precision"),
        (lambda f: f.update(prediction="noise"), "prediction"),
        (lambda f: f.update(alphas_cumprod=[0.9]), "alphas_cumprod"),
        (lambda f: f.update(alphas_cumprod=[0.5, 0.5]), "alphas_cumprod"),
        (lambda f: f.update(alphas_cumprod=[0.5, 0.9]), "alphas_cumprod"),
        (lambda f: f.update(alphas_cumprod=[1.0, 0.5]), "alphas_cumprod[0]"),
        (lambda f: f.update(alphas_cumprod=[0.5, 0.0]), "alphas_cumprod[1]"),
        (lambda f: f.update(alphas_cumprod=[0.5, 1e-320]), "alphas_cumprod[1]"),
        (lambda f: f.update(fractional_timesteps=1), "fractional_timesteps"),
        (lambda f: f.pop("files"), "denoiser.onnx is not listed"),
        (lambda f: f.update(files={}), "denoiser.onnx is not listed"),
        (lambda f: f["files"].pop("classifier.onnx"), "classifier.onnx is not listed"),
        (lambda f: f["files"].update({"denoiser.onnx": "0" * 63}), "denoiser.onnx"),
        (lambda f: f["files"].update({"denoiser.onnx": "A" * 64}), "denoiser.onnx"),
        (lambda f: f["files"].update({"fvit.json": "0" * 64}), "fvit.json cannot be listed"),
        (lambda f: f["files"].update({"engines": "0" * 64}), "engines cannot be listed"),
    ],
)  # fmt: skip
def test_a_manifest_that_says_too_much_too_little_or_nonsense_names_the_field(
    bundle: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    rewrite(bundle, change)
    line = refusal(bundle)
    assert named in line.removeprefix(str(bundle)) and "damaged" in line


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..",
        ".",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "",
        ".hidden",
        "a\n",
        "a\0",
        "é",
        "a" * 300,
    ],
)
def test_a_file_that_is_no_plain_name_is_never_followed(bundle: Path, name: str) -> None:
    rewrite(bundle, lambda fields: fields["files"].update({name: "0" * 64}))
    assert "files[" in refusal(bundle)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"7", b"null", b"\xff\xfe{\x00}\x00", b'{"format": 2, "labels": ["\xe9"]}',
        b'\xef\xbb\xbf{"format": 2}', b"[" * 100_000, b'{"a":' * 100_000,
        b'{"format": 2, "grid": ' + b"9" * 9999 + b"}", b'{"format": ' + b"9" * 9999 + b"}",
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_a_manifest_that_is_no_json_object_is_damaged(bundle: Path, text: bytes) -> None:
    (bundle / "fvit.json").write_bytes(text)
    assert "fvit.json is damaged" in refusal(bundle)


def test_a_field_that_is_there_twice_is_named(bundle: Path) -> None:
    text = (bundle / "fvit.json").read_text().rstrip()[:-1] + ', "grid": [1, 1]}'
    (bundle / "fvit.json").write_text(text)
    assert "grid is there twice" in refusal(bundle)


@pytest.mark.parametrize("piece", [b"0,", b'"",', b"[],"])
def test_a_manifest_as_large_as_may_be_is_refused_without_ado(bundle: Path, piece: bytes) -> None:
    start, end = b'{"format": 2, "alphas_cumprod": [', b"0]}"
    count = ((1 << 22) - len(start) - len(end)) // len(piece)
    (bundle / "fvit.json").write_bytes(start + piece * count + end)
    assert "classifier: Field required" in refusal(bundle)
    (bundle / "fvit.json").write_bytes(start + piece * (count + 2) + end)
    assert "larger than 4 MiB" in refusal(bundle)


def link(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def listening(file: Path) -> None:
    file.unlink()
    here = Path.cwd()
    os.chdir(file.parent)  # the name of a socket may have 108 bytes
    socket.socket(socket.AF_UNIX).bind(file.name)
    os.chdir(here)


@pytest.mark.parametrize("make", [link, pipe, folder, device, listening])
@pytest.mark.parametrize("name", ["fvit.json", "denoiser.onnx"])
def test_what_is_no_regular_file_is_refused_and_not_read(
    bundle: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(bundle / name)
    assert f"{name} is no regular file" in refusal(bundle)


def test_a_bundle_holds_nothing_that_is_not_listed(bundle: Path) -> None:
    (bundle / "notes\n.txt").write_text("mine")
    assert r"notes\n.txt is not listed" in refusal(bundle)


def test_plans_are_built_into_a_bundle_later(bundle: Path) -> None:
    before = open_bundle(bundle).digest
    (bundle / "engines").mkdir()
    (bundle / "engines" / "denoiser.plan").write_bytes(b"z")
    assert open_bundle(bundle).digest == before


def test_plans_are_not_taken_from_elsewhere(bundle: Path, tmp_path: Path) -> None:
    (bundle / "engines").symlink_to(tmp_path)
    assert "engines is no folder" in refusal(bundle)


def test_a_manifest_is_not_made_from_nonsense() -> None:
    with pytest.raises(ValidationError):
        Manifest(**(MANIFEST.model_dump() | {"precision": "fp64"}))
    with pytest.raises(ValidationError):
        MANIFEST.precision = "fp16"


# Graphs against the manifest.


@dataclass
class Signature:
    """What an engine says of its graph."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def tensors(shapes: dict[str, tuple[int | None, ...]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, shape, np.dtype(np.float32)) for name, shape in shapes.items())


def engines(other: Mapping[str, Tensor], *, batch: int | None = None) -> dict[str, Engine]:
    """Engines for the manifest's graphs, with other tensors in the place of those of the same name."""
    graphs = {
        "denoiser": Signature(
            tensors({"noisy": (batch, 3, 8, 8), "sigma": (batch,), "timestep": (batch,)}),
            tensors({"images": (batch, 3, 16, 16)}),
        ),
        "classifier": Signature(
            tensors({"images": (batch, 3, 16, 16)}),
            tensors({"logits": (batch, 2), "attribution": (batch, 6)}),
        ),
    }
    for graph in graphs.values():
        graph.inputs = tuple(other.get(tensor.name, tensor) for tensor in graph.inputs)
        graph.outputs = tuple(other.get(tensor.name, tensor) for tensor in graph.outputs)
    return cast(dict[str, Engine], graphs)


@pytest.mark.parametrize("batch", [None, 8])
def test_graphs_that_are_what_the_manifest_says_pass(batch: int | None) -> None:
    check_graphs(Bundle(Path("b"), MANIFEST, ""), **engines({}, batch=batch))


F32, F16 = np.dtype(np.float32), np.dtype(np.float16)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"noisy": Tensor("pixels", (None, 3, 8, 8), F32)}, "denoiser.onnx: its inputs are pixels, sigma"),
        ({"logits": Tensor("scores", (None, 2), F32)}, "its outputs are attribution, scores"),
        ({"noisy": Tensor("noisy", (None, 3, 8, 9), F32)}, r"\[any, 3, 8, 9\], but .*\[B, 3, 8, 8\]"),
        ({"noisy": Tensor("noisy", (None, 3, None, None), F32)}, "input noisy"),
        ({"noisy": Tensor("noisy", (None, 3, 8, 8), F16)}, "noisy is float16"),
        ({"sigma": Tensor("sigma", (), F32)}, r"sigma is float32 \[\], but fvit.json makes it float32 \[B\]"),
        ({"timestep": Tensor("timestep", (None,), np.dtype(np.int64))}, "timestep is int64"),
        ({"images": Tensor("images", (None, 3, 8, 8), F32)}, "output images"),
        ({"logits": Tensor("logits", (None, 3), F32)}, "output logits"),
        ({"attribution": Tensor("attribution", (None, 4), F32)}, "output attribution"),
        ({"sigma": Tensor("sigma", (1,), F32)}, "batch differs between tensors .*sigma 1"),
    ],
)  # fmt: skip
def test_graphs_that_are_something_else_are_refused(other: dict[str, Tensor], said: str) -> None:
    with pytest.raises(FvitError, match=said):
        check_graphs(Bundle(Path("b"), MANIFEST, ""), **engines(other))


# Writing.


def test_a_failed_export_leaves_nothing_and_keeps_the_old_bundle(bundle: Path) -> None:
    before = open_bundle(bundle).digest
    with pytest.raises(RuntimeError), write_bundle(bundle) as folder:
        (folder / "denoiser.onnx").write_bytes(b"half")
        raise RuntimeError
    assert open_bundle(bundle).digest == before
    assert [entry.name for entry in bundle.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("reason", [Interrupted, OSError(28, "No space left on device")])
def test_an_end_between_two_names_keeps_the_old_bundle(
    bundle: Path, reason: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename, renamed = open_bundle(bundle).digest, Path.rename, []

    def second_fails(self: Path, target: Path) -> Path:
        renamed.append(self)
        if len(renamed) == 2:
            raise reason
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises((Interrupted, FvitError)):
        write(bundle)
    assert open_bundle(bundle).digest == before
    assert [entry.name for entry in bundle.parent.iterdir()] == ["b"]


def test_a_bundle_of_any_format_with_its_plans_is_replaced(bundle: Path) -> None:
    rewrite(bundle, lambda fields: fields.update(format=1))
    (bundle / "engines").mkdir()
    assert open_bundle(write(bundle)).manifest.precision == "fp32"
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize("beside", [[], ["fvit.json", "denoiser.onnx", "classifier.onnx"], ["fvit.json"]])
def test_a_folder_that_holds_anything_but_a_bundle_is_not_overwritten(
    bundle: Path, beside: list[str]
) -> None:
    for name in {"fvit.json", "denoiser.onnx", "classifier.onnx"} - set(beside):
        (bundle / name).unlink()
    (bundle / "thesis.txt").write_text("years of work")
    with pytest.raises(FvitError, match=r"no bundle|thesis\.txt"), write_bundle(bundle):
        pass
    assert (bundle / "thesis.txt").exists()


def test_what_is_no_plain_file_is_not_sealed(tmp_path: Path) -> None:
    with pytest.raises(FvitError, match="no regular file"), write_bundle(tmp_path / "b") as folder:
        (folder / "inside").mkdir()
        seal(folder, MANIFEST)
    assert not list(tmp_path.iterdir())
