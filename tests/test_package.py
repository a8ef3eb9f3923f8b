import ast
import graphlib
import importlib.metadata as metadata
import re
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

import fvit
from fvit.errors import FvitError
from fvit.extras import MissingExtra, require

PACKAGE = Path(fvit.__file__).parent
HEAVY = (
    "torch",
    "onnxruntime",
    "matplotlib",
    "timm",
    "diffusers",
    "onnx",
    "scipy",
    "tensorrt",
    "pydantic",
    "PIL",
    "fastapi",
    "uvicorn",
    "prometheus_client",
    "ray",
    "pyarrow",
)
RUN_CODE = {"dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}


def loaded_by(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of these modules, or of what lies below them, are loaded once this code has run."""
    asks = f"import sys; {code}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    return [each for each in done.stdout.split() if any(f"{each}.".startswith(f"{name}.") for name in names)]


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import fvit", HEAVY) == []


def test_the_runtime_loads_no_torch_and_what_an_option_needs_when_it_is_given() -> None:
    code = "import fvit.runtime.cli, fvit.runtime.verifying, fvit.evaluation.cli, fvit.engines.onnxruntime"
    assert loaded_by(code, ("torch", "fvit.export", "ray", "pyarrow", "matplotlib")) == []


def test_certificates_can_be_read_and_verified_without_the_runtime() -> None:
    names = sorted(f"fvit.certificates.{file.stem}" for file in (PACKAGE / "certificates").glob("*.py"))
    others = ("fvit.runtime", "fvit.engines", "fvit.export", "fvit.demo", "onnxruntime", "PIL", "typer")
    assert loaded_by(f"import {', '.join(names)}".replace(".__init__", ""), others) == []


def modules() -> dict[str, ast.Module]:
    """What every module of the package says, by its name."""
    files = {file.relative_to(PACKAGE.parent): file for file in PACKAGE.rglob("*.py")}
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): ast.parse(file.read_bytes())
        for path, file in files.items()
    }


def test_modules_import_in_no_circle_not_even_inside_functions() -> None:
    trees = modules()
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        named = [
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports relatively"
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                named += [each if each in trees else str(node.module) for each in inside]
        graph[name] = trees.keys() & set(named)
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_nothing_that_is_loaded_can_run_code() -> None:
    """Bundles, images, records, journals and checkpoints are data: no pickles, no evaluated text."""
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & RUN_CODE, name
            if isinstance(node, ast.ImportFrom):
                assert str(node.module).partition(".")[0] not in RUN_CODE | {"pickle"}, name
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
                assert node.attr == "UnpicklingError", name
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert called not in ("eval", "exec", "compile", "__import__"), name
                assert called != "torch.load" or given.get("weights_only") == "True", name
                assert called != "np.load" or "allow_pickle" not in given, name


@pytest.mark.skipif(not (PACKAGE.parent / ".git").exists(), reason="this is no checkout")
def test_the_package_explains_itself() -> None:
    """What is published refers to what is published: no notes of how the work is planned."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PACKAGE.parent, capture_output=True, check=True
    ).stdout.decode()
    word = b"design".upper()  # which would otherwise be here
    naming = [name for name in listed.split("\0") if name and word in _bytes(PACKAGE.parent / name)]
    assert naming == []


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'fvit\[export\]'"):
        require("a_package_that_does_not_exist", extra="export", purpose="this test")


def test_a_package_that_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyCUDA where the driver's library is missing."""
    (tmp_path / "installed_but_broken.py").write_text("raise ImportError('libcuda.so.1: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FvitError, match=r"cannot be loaded: libcuda\.so\.1") as caught:
        require("installed_but_broken", extra=None, purpose="this test")
    assert not isinstance(caught.value, MissingExtra)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = fvit.nothing


@pytest.mark.skipif(not (PACKAGE.parent / "pyproject.toml").exists(), reason="this is no checkout")
def test_the_wheel_certifies_where_only_the_base_dependencies_are_installed(
    tmp_path: Path, samples: list[Path]
) -> None:
    """A virtual environment that holds what `pip install` of the wheel brings, and so no torch."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=PACKAGE.parent, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    for name in _closure("fvit") - {"fvit"}:
        for file in metadata.distribution(name).files or []:
            top = file.parts[0]
            source = Path(str(metadata.distribution(name).locate_file(top)))
            if top not in ("..", "__pycache__") and source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    with ZipFile(wheel) as packed:
        packed.extractall(site)
    python = tmp_path / "venv" / "bin" / "python"

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([python, "-I", *arguments], capture_output=True, text=True, check=False)

    assert "No module named 'torch'" in run("-c", "import torch").stderr
    assert "No module named 'matplotlib'" in run("-c", "import matplotlib").stderr
    code = "from fvit.commands import certify; certify()"
    done = run("-c", code, "demo", "--n", "40", "--alpha", "0.1")
    assert done.returncode == 0, done.stderr
    assert all(sample.stem in done.stdout for sample in samples)
    done = run("-c", code, "demo", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "pip install 'fvit[plots]'" in done.stderr


def _closure(root: str) -> set[str]:
    """The distributions that a plain `pip install` of `root` brings."""
    found: set[str] = set()
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for requirement in metadata.distribution(name).requires or []:
            needed, _, marker = requirement.partition(";")
            if "extra ==" in marker:
                continue
            bare = re.split(r"[\s<>=!~\[(]", needed.strip())[0]
            try:
                metadata.distribution(bare)
            except metadata.PackageNotFoundError:
                continue  # its marker does not hold here
            waiting.append(bare)
    return found
