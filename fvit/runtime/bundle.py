"""The bundle: a folder that holds one FViT, whole or not at all (DESIGN section 7)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fvit.errors import FvitError
from fvit.runtime.schedule import Schedule

FORMAT = 1
MANIFEST = "fvit.json"
DENOISER = "denoiser.onnx"
CLASSIFIER = "classifier.onnx"


@dataclass(frozen=True)
class Manifest:
    """What fvit.json says. Sizes are (rows, columns); mean and std are per channel of [0,1] images,
    already applied inside the classifier graph; files maps each file to its SHA-256."""

    classifier: str
    denoiser: str
    labels: tuple[str, ...]
    image_size: tuple[int, int]
    classifier_size: tuple[int, int]
    grid: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    explanation: str
    precision: str
    prediction: str
    alphas_cumprod: tuple[float, ...]
    fractional_timesteps: bool
    files: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        return Schedule(np.asarray(self.alphas_cumprod, np.float64), self.fractional_timesteps)

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle. digest: SHA-256 of fvit.json, which names every other file's."""

    folder: Path
    manifest: Manifest
    digest: str

    @property
    def denoiser(self) -> Path:
        return self.folder / DENOISER

    @property
    def classifier(self) -> Path:
        return self.folder / CLASSIFIER


def open_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and verify the SHA-256 of every file that its manifest lists.

    Raises FvitError where it is missing, of another format, or a file was changed (named).
    """
    path = Path(folder)
    text = _read_manifest(path)
    try:
        fields = json.loads(text)
        version = fields.pop("format")
        if version != FORMAT:
            raise FvitError(
                f"{path}: bundle format {version}, this fvit reads format {FORMAT}: export it again"
            )
        manifest = Manifest(**{key: _frozen(value) for key, value in fields.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FvitError(f"{path / MANIFEST} is damaged ({error}): export the bundle again") from error
    for name, expected in manifest.files.items():
        try:
            found = sha256(path / name)
        except OSError as error:
            raise FvitError(
                f"{path / name} cannot be read ({error.strerror}): export the bundle again"
            ) from error
        if found != expected:
            raise FvitError(f"{path / name} was changed: its SHA-256 is not the bundle's; export it again")
    return Bundle(path, manifest, hashlib.sha256(text).hexdigest())


@contextmanager
def write_bundle(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary sibling to fill; renamed to `folder` when the block ends well, removed when not.

    Raises FvitError where the place exists and is no bundle, or cannot be written. The block must
    call `seal` last.
    """
    target = Path(folder)
    if target.exists() and not (target / MANIFEST).is_file():
        raise FvitError(f"{target} exists and is no bundle: choose another place or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise FvitError(f"cannot write {target}: {error.strerror}") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            old = temporary.with_name(temporary.name + "-old")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    except OSError as error:
        raise FvitError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, with the SHA-256 of every file that lies in the folder."""
    files = {
        file.relative_to(folder).as_posix(): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    fields = {"format": FORMAT} | dataclasses.asdict(dataclasses.replace(manifest, files=files))
    (folder / MANIFEST).write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n")


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_manifest(path: Path) -> bytes:
    try:
        return (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        what = "is no bundle (it has no fvit.json)" if path.exists() else "does not exist"
        raise FvitError(f"{path} {what}: make one with  fvit-export demo {path}") from None
    except OSError as error:
        raise FvitError(f"{path / MANIFEST} cannot be read: {error.strerror}") from error


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
