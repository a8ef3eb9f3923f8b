"""What fvit-export triton writes, without a server."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import fvit
from fvit.runtime.bundle import open_bundle
from tests.commands import here, obey_modes
from tests.test_package import loaded_by

ENTRY = Path(fvit.__file__).parent / "triton" / "entry.py"


def config_of(model: Path) -> model_config_pb2.ModelConfig:
    """config.pbtxt, as Triton reads it."""
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_a_model_is_written_whole(demo_bundle: Path, tmp_path: Path) -> None:
    ended = here("export", "triton", demo_bundle, tmp_path / "models")
    assert (ended.status, ended.stderr) == (0, "")
    model = tmp_path / "models" / "fvit"
    assert open_bundle(model / "1" / "bundle").digest == open_bundle(demo_bundle).digest
    assert (model / "labels.txt").read_text().splitlines() == [str(digit) for digit in range(10)]
    found = config_of(model)
    assert found.backend == "python"
    assert found.model_transaction_policy.decoupled
    assert {tensor.name for tensor in found.input if not tensor.optional} == set()
    sizes = {tensor.name: list(tensor.dims) for tensor in found.output}
    assert (sizes["counts"], sizes["attention"]) == ([10], [8, 8])
    [group] = found.instance_group
    assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["fvit"]


@pytest.mark.parametrize(
    ("device", "gpus"), [("tensorrt", []), ("ort-tensorrt:0", [0]), ("cuda:0,2", [0, 2])]
)
def test_a_gpu_has_one_instance(demo_bundle: Path, tmp_path: Path, device: str, gpus: list[int]) -> None:
    assert here("export", "triton", demo_bundle, tmp_path, "--device", device).status == 0
    found = config_of(tmp_path / "fvit")
    [group] = found.instance_group
    assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_GPU)
    assert list(group.gpus) == gpus
    assert found.parameters["device"].string_value == device.partition(":")[0]


def test_another_export_replaces_the_model_and_leaves_others(demo_bundle: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert here("export", "triton", demo_bundle, tmp_path, "--name", name).status == 0
    before = (tmp_path / "two" / "config.pbtxt").stat().st_mtime_ns
    (tmp_path / "one" / "1" / "forgotten").touch()
    assert here("export", "triton", demo_bundle, tmp_path, "--name", "one", "--device", "cuda").status == 0
    assert config_of(tmp_path / "one").parameters["device"].string_value == "cuda"
    assert not (tmp_path / "one" / "1" / "forgotten").exists()
    assert (tmp_path / "two" / "config.pbtxt").stat().st_mtime_ns == before
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_a_repository_in_the_bundle_is_refused(demo_bundle: Path) -> None:
    before = list(demo_bundle.iterdir())
    ended = here("export", "triton", demo_bundle, demo_bundle / "models")
    assert (ended.status, ended.stderr.count("\n")) == (1, 1)
    assert "name another folder" in ended.stderr
    assert list(demo_bundle.iterdir()) == before


def test_what_is_no_model_of_ours_is_left_alone(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "fvit").mkdir()
    (tmp_path / "fvit" / "config.pbtxt").write_text('backend: "onnxruntime"\n')
    assert "choose another --name" in here("export", "triton", demo_bundle, tmp_path).refusal
    assert (tmp_path / "fvit" / "config.pbtxt").read_text() == 'backend: "onnxruntime"\n'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "auto"], "unknown device 'auto'"),
        (["--device", "cpu:0"], "unknown device 'cpu:0'"),
        (["--device", "cuda:0,0"], "unknown device 'cuda:0,0'"),
        (["--device", "cuda:"], "unknown device 'cuda:'"),
        (["--name", "a/b"], "'a/b' is no name"),
        (["--name", ""], "'' is no name"),
        (["--name", '.x"'], "is no name"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(
    demo_bundle: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    assert words in here("export", "triton", demo_bundle, tmp_path / "models", *arguments).refusal
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_damaged_or_absent_is_refused(photo: Path, tmp_path: Path) -> None:
    assert "does not exist" in here("export", "triton", tmp_path / "absent", tmp_path / "models").refusal
    assert "is no bundle" in here("export", "triton", photo, tmp_path / "models").refusal
    assert not (tmp_path / "models").exists()


def test_where_nothing_may_be_written_nothing_is_left(demo_bundle: Path, tmp_path: Path) -> None:
    code = "from fvit.commands import export; export()"
    tmp_path.chmod(0o500)
    done = subprocess.run(
        [sys.executable, "-c", code, "triton", str(demo_bundle), str(tmp_path / "models")],
        capture_output=True, text=True, check=False, preexec_fn=obey_modes,
    )  # fmt: skip
    tmp_path.chmod(0o700)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot write" in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_class_of_any_name_is_one_line_of_the_labels(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ["a\nb", *map(str, range(9))]

    def renamed(bundle: str) -> object:
        opened = open_bundle(bundle)
        return type(opened)(opened.folder, opened.manifest.model_copy(update={"labels": tuple(labels)}), "")

    monkeypatch.setattr("fvit.triton.repository.open_bundle", renamed)
    assert here("export", "triton", demo_bundle, tmp_path).status == 0
    lines = (tmp_path / "fvit" / "labels.txt").read_text().splitlines()
    assert lines == ["a\\nb", *labels[1:]]


def test_none_of_triton_s_packages_is_needed() -> None:
    code = "import fvit.triton.repository, fvit.export.cli, fvit.triton.asked, fvit.triton.tensors"
    named = ("tritonclient", "pytriton", "triton_python_backend_utils", "torch", "grpc", "fastapi")
    assert loaded_by(code, named) == []


def test_a_server_without_the_package_names_the_command_that_installs_it(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_bytes(ENTRY.read_bytes())
    code = f"import runpy; runpy.run_path({str(tmp_path / 'model.py')!r})"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert "run  pip install --upgrade fvit  there" in done.stderr
