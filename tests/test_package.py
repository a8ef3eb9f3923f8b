import importlib.metadata as metadata
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import fvit
from fvit.errors import FvitError
from fvit.extras import MissingExtra, require

HEAVY = ("torch", "onnxruntime", "matplotlib", "timm", "diffusers", "onnx", "scipy", "tensorrt")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, fvit; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_runtime_loads_no_torch() -> None:
    code = "import sys, fvit.runtime.cli, fvit.engines.onnxruntime; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


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


def test_certifies_where_only_the_base_dependencies_are_installed(
    tmp_path: Path, demo_bundle: Path, samples: list[Path]
) -> None:
    """A virtual environment that holds what `pip install fvit` brings, and so no torch."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    for name in _closure("fvit"):
        for file in metadata.distribution(name).files or []:
            top = file.parts[0]
            source = Path(str(metadata.distribution(name).locate_file(top)))
            if top not in ("..", "__pycache__") and source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    (site / "fvit").unlink(missing_ok=True)
    (site / "fvit").symlink_to(Path(fvit.__file__).parent)
    python = tmp_path / "venv" / "bin" / "python"

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([python, "-I", *arguments], capture_output=True, text=True, check=False)

    assert "No module named 'torch'" in run("-c", "import torch").stderr
    assert "No module named 'matplotlib'" in run("-c", "import matplotlib").stderr
    code = "from fvit.runtime.cli import main; main()"
    done = run("-c", code, str(demo_bundle), str(samples[0]), "--n", "64", "--n0", "8")
    assert done.returncode == 0, done.stderr
    assert samples[0].stem in done.stdout
    done = run("-c", code, str(demo_bundle), str(samples[0]), "--out", str(tmp_path / "out"))
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
