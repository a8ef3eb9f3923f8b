"""A Triton model repository around a bundle."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fvit.commands import one_line
from fvit.engines.base import GPU_NUMBER
from fvit.errors import FvitError
from fvit.runtime.bundle import Manifest, open_bundle
from fvit.runtime.loading import ON_CPU, ON_GPU
from fvit.triton import BUNDLE
from fvit.triton.tensors import INPUTS, Kind, outputs

LABELS = "labels.txt"
CONFIG = "config.pbtxt"

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")

WRITTEN = "# Written by fvit-export triton;"
"""How the configuration of a model begins that may be replaced."""

LIMITS = {"max_n": 100_000, "max_waiting": 100_000, "drain": 20}
"""Copies of one image; rows that may wait for the device; seconds that what runs has when the server ends,
which have to be fewer than it waits itself, 30 unless told."""


def write_repository(
    bundle: str | os.PathLike[str], repository: Path, *, name: str = "fvit", device: str = "cpu"
) -> Path:
    """Write a model of this name, with a copy of the bundle, into a model repository; its folder.

    device: cpu or openvino; tensorrt, ort-tensorrt or cuda for one instance on every GPU that the server
    has, cuda:0,1 and the like for one on each of these. A model that was written so before is replaced, whole
    or not at all; the repository may hold others. Raises FvitError where the bundle is missing or damaged,
    the name or the device cannot be used, or the place is taken by something else or cannot be written.
    """
    kind, gpus = _parsed(device)
    if not NAME.fullmatch(name):
        raise FvitError(f"'{name}' is no name for a model: use letters, digits, '_', '.' or '-'")
    opened = open_bundle(bundle)
    if (repository / name).resolve().is_relative_to(opened.folder.resolve()):
        raise FvitError(
            f"{repository} lies in the bundle {opened.folder}, which is closed: name another folder"
        )
    with _replaced(repository / name) as folder:
        shutil.copytree(opened.folder, folder / "1" / BUNDLE)
        shutil.copy(Path(__file__).with_name("entry.py"), folder / "1" / "model.py")
        lines = [one_line(label) for label in opened.manifest.labels]
        (folder / LABELS).write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / CONFIG).write_text(config(opened.manifest, kind=kind, gpus=gpus), encoding="utf-8")
    return repository / name


def config(manifest: Manifest, *, kind: str, gpus: tuple[int, ...]) -> str:
    """The text of config.pbtxt. kind: what runs the graphs. gpus: numbers, none for all that there are."""
    group = "KIND_CPU" if kind in ON_CPU else "KIND_GPU" + (f" gpus: {list(gpus)}" if gpus else "")
    told = {"device": kind} | {name: str(most) for name, most in LIMITS.items()}
    return "\n".join(
        [
            f"{WRITTEN} the package's docs/triton.md explains it.",
            'backend: "python"',
            "max_batch_size: 0  # batches are made of all requests' copies, by the model",
            "model_transaction_policy { decoupled: true }",
            f"instance_group [ {{ count: 1 kind: {group} }} ]",
            "input [",
            _tensors(INPUTS, more=lambda name: "optional: true"),
            "]",
            "output [",
            _tensors(
                outputs(manifest),
                more=lambda name: f'label_filename: "{LABELS}"' if name == "counts" else "",
            ),
            "]",
            *(
                f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
                for key, value in told.items()
            ),
            "",
        ]
    )


def _tensors(kinds: Mapping[str, Kind], *, more: Callable[[str], str]) -> str:
    return ",\n".join(
        f'  {{ name: "{name}" data_type: {kind.data_type} dims: {list(kind.dims)} {more(name)}'.rstrip()
        + " }"
        for name, kind in kinds.items()
    )


def _parsed(device: str) -> tuple[str, tuple[int, ...]]:
    """What runs the graphs, and the numbers of GPUs where some were named."""
    kind, colon, numbers = device.partition(":")
    named = numbers.split(",") if colon else []
    if device not in ON_CPU and not (
        kind in ON_GPU and all(map(GPU_NUMBER.fullmatch, named)) and len(set(named)) == len(named)
    ):
        raise FvitError(
            f"unknown device '{device}': use cpu or openvino, or tensorrt, ort-tensorrt or cuda for all "
            "GPUs of the server, cuda:0,1 for the first two"
        )
    return kind, tuple(map(int, named))


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A temporary sibling to fill, which takes the target's place when the block ends well."""
    if os.path.lexists(target) and not _is_ours(target):
        raise FvitError(
            f"{target} exists and was not written by fvit-export triton: choose another --name, or remove it"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise FvitError(f"cannot write {target}: {error.strerror}") from error
    try:
        (temporary / "new").mkdir()
        yield temporary / "new"
        if target.exists():
            target.rename(temporary / "old")
        try:
            (temporary / "new").rename(target)
        except OSError:
            if (temporary / "old").exists():
                (temporary / "old").rename(target)
            raise
    except OSError as error:  # of copytree it is many in one
        raise FvitError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_ours(target: Path) -> bool:
    try:
        with (target / CONFIG).open(encoding="utf-8", errors="replace") as file:
            return file.read(len(WRITTEN)) == WRITTEN
    except OSError:
        return False
