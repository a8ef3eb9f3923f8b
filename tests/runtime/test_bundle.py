import dataclasses
import json
from pathlib import Path

import pytest

from fvit.errors import FvitError
from fvit.runtime.bundle import Manifest, open_bundle, seal, write_bundle

MANIFEST = Manifest(
    classifier="c", denoiser="d", labels=("a", "b"), image_size=(8, 8), classifier_size=(8, 8), grid=(2, 2),
    mean=(0.5,), std=(0.5,), explanation="attention", precision="fp32", prediction="epsilon",
    alphas_cumprod=(0.9, 0.5), fractional_timesteps=True,
)  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    with write_bundle(tmp_path / "b") as folder:
        (folder / "denoiser.onnx").write_bytes(b"x" * 100)
        (folder / "classifier.onnx").write_bytes(b"y" * 100)
        seal(folder, MANIFEST)
    return tmp_path / "b"


def test_what_was_written_is_read_back(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert dataclasses.replace(opened.manifest, files={}) == MANIFEST
    assert set(opened.manifest.files) == {"denoiser.onnx", "classifier.onnx"}


@pytest.mark.parametrize("name", ["denoiser.onnx", "classifier.onnx"])
def test_one_flipped_byte_names_the_file(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[50] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(FvitError, match=f"{name} was changed"):
        open_bundle(bundle)


def test_a_missing_file_names_it(bundle: Path) -> None:
    (bundle / "classifier.onnx").unlink()
    with pytest.raises(FvitError, match="classifier.onnx cannot be read"):
        open_bundle(bundle)


def test_a_missing_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FvitError, match="fvit-export demo"):
        open_bundle(tmp_path / "absent")


def test_another_format_and_a_damaged_manifest_are_refused(bundle: Path) -> None:
    fields = json.loads((bundle / "fvit.json").read_text())
    (bundle / "fvit.json").write_text(json.dumps(fields | {"format": 99}))
    with pytest.raises(FvitError, match="format 99"):
        open_bundle(bundle)
    for text in ("{", "[]", '{"format": 1}', '{"format": 1, "surprise": 2}'):
        (bundle / "fvit.json").write_text(text)
        with pytest.raises(FvitError, match="damaged"):
            open_bundle(bundle)


def test_a_failed_export_leaves_nothing_and_keeps_the_old_bundle(bundle: Path) -> None:
    before = open_bundle(bundle).digest
    with pytest.raises(RuntimeError), write_bundle(bundle) as folder:
        (folder / "denoiser.onnx").write_bytes(b"half")
        raise RuntimeError
    assert open_bundle(bundle).digest == before
    assert [entry.name for entry in bundle.parent.iterdir()] == ["b"]


def test_a_folder_that_is_no_bundle_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(FvitError, match="no bundle"), write_bundle(tmp_path / "precious"):
        pass
    assert (tmp_path / "precious" / "thesis.txt").exists()
