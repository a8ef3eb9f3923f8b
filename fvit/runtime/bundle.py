"""The bundle: a folder that holds one FViT, whole or not at all, and nothing else.

`fvit.json`, the manifest, says what the FViT is and names every file with its SHA-256; `denoiser.onnx` and
`classifier.onnx` are the graphs, with weights beside them where those are large; `engines/` holds what was
built from the graphs for one GPU later, and is the only thing that the manifest does not name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from fvit import demo
from fvit.engines.base import PLANS, Engine, Tensor
from fvit.errors import FvitError
from fvit.runtime.schedule import Schedule

FORMAT = 2
MANIFEST = "fvit.json"
DENOISER = "denoiser.onnx"
CLASSIFIER = "classifier.onnx"

LARGEST_MANIFEST = 1 << 22
"""Bytes; the labels of ImageNet-21k with a schedule of 4,000 steps take a quarter of this."""


def _encodable(text: str) -> str:
    # JSON can spell halves of characters, which no file, terminal or picture takes.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a character (a lone surrogate)") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Name = Annotated[Text, Field(min_length=1, max_length=1000)]
Side = Annotated[int, Field(ge=1, le=1 << 15)]
Size = tuple[Side, Side]
PerChannel = tuple[float, float, float]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Origin(BaseModel):
    """What a part of a bundle was made from: its name there, and the SHA-256 of that bundle's fvit.json, or
    None where it was none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Name
    bundle: Digest | None = None


class Manifest(BaseModel):
    """What fvit.json says. Sizes are (rows, columns); mean and std are per channel of [0,1] images, already
    applied inside the classifier graph; explained is the class whose logit the explanation explains, each
    copy's own prediction or one index for all, and None where the explanation is the same for every class;
    prediction is the denoiser's family (docs/method.md, section 2), which its graph already follows;
    teacher is the denoiser that this one was distilled from, tuned_from the classifier that this one was;
    files maps each file to its SHA-256.

    Raises pydantic's ValidationError where a field is missing, of another type or out of its range, or
    fields contradict one another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    classifier: Name
    denoiser: Name
    labels: Annotated[tuple[Text, ...], Field(min_length=2), FailFast()]
    image_size: Size
    classifier_size: Size
    grid: Size
    mean: PerChannel
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    explanation: Name
    explained: Literal["predicted"] | int | None = None
    precision: Literal["fp32", "fp16", "int8"]
    prediction: Literal["epsilon", "v_prediction", "sample", "edm", "flow", "consistency"]
    # Below 1e-30 the noise of a step is no finite number of pixels in every arithmetic used here.
    alphas_cumprod: Annotated[tuple[Annotated[float, Field(ge=1e-30, lt=1)], ...], FailFast()]
    fractional_timesteps: bool
    teacher: Origin | None = None
    tuned_from: Origin | None = None
    files: dict[FileName, Digest] = {}

    @field_validator("alphas_cumprod")
    @classmethod
    def _falls(cls, products: tuple[float, ...]) -> tuple[float, ...]:
        try:
            Schedule(np.asarray(products, np.float64))
        except FvitError as error:
            raise ValueError(str(error)) from error
        return products

    @field_validator("explained", mode="plain")
    @classmethod
    def _is_a_class(cls, explained: Any) -> Any:
        if explained is None or explained == "predicted" or (type(explained) is int and explained >= 0):
            return explained
        raise ValueError(f"a class is 'predicted' or an index, not {_short(explained)}")

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        if any(tokens > side for tokens, side in zip(self.grid, self.classifier_size, strict=True)):
            raise ValueError(
                f"grid {_sides(self.grid)} cannot lie on classifier_size {_sides(self.classifier_size)}"
            )
        if isinstance(self.explained, int) and self.explained >= len(self.labels):
            raise ValueError(f"explained {self.explained} is the index of none of {len(self.labels)} labels")
        return self

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
    """Open a bundle, or where "demo" is said the embedded one, and verify that the folder holds what its
    manifest lists, no more and no less.

    Raises FvitError where it is missing, of another format, a field of its manifest is wrong (named), or
    a file is missing, not listed, no regular file, or was changed (named). Nothing but regular files
    inside the folder is read.
    """
    path = demo.BUNDLE if folder == demo.NAME else Path(folder)
    with _opened(path) as there:
        text = _read_manifest(path, there)
        manifest = _parsed(path, text)
        _check_entries(path, there, manifest)
        for name, expected in manifest.files.items():
            if _sha256(path, there, name) != expected:
                raise FvitError(
                    f"{path / name} was changed: its SHA-256 is not the bundle's; export it again"
                )
    return Bundle(path, manifest, hashlib.sha256(text).hexdigest())


def check_graphs(bundle: Bundle, *, denoiser: Engine, classifier: Engine) -> None:
    """Raise FvitError, before anything runs, where a graph is not what the manifest says it is.

    The denoiser takes noisy [B,3,H,W], sigma [B] and timestep [B] and gives images [B,3,h,w]; the
    classifier takes images and gives logits [B,C] and attribution [B,N]; all are float32. B is free, or
    one number for all of a graph.
    """
    manifest = bundle.manifest
    images = {"images": (3, *manifest.classifier_size)}
    _check_graph(
        bundle.denoiser,
        denoiser,
        inputs={"noisy": (3, *manifest.image_size), "sigma": (), "timestep": ()},
        outputs=images,
    )
    _check_graph(
        bundle.classifier,
        classifier,
        inputs=images,
        outputs={"logits": (len(manifest.labels),), "attribution": (manifest.tokens,)},
    )


def check_precision(bundle: Bundle) -> None:
    """Raise FvitError where a manifest says int8 and no layer of the graphs is, or the other way about."""
    said = bundle.manifest.precision
    if (said == "int8") != any(map(_quantised, (bundle.denoiser, bundle.classifier))):
        raise FvitError(
            f"{bundle.folder / MANIFEST}: precision is {said}, but {'no' if said == 'int8' else 'a'} layer "
            "of the graphs is in int8: export the bundle again"
        )


@contextmanager
def write_bundle(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary sibling to fill; renamed to `folder` when the block ends well, removed when not.

    Raises FvitError where the place exists and is anything but a bundle, which is replaced, cannot be
    written, is a link or has no name, or would go by the embedded bundle's name. The block must call `seal`
    last.
    """
    target = Path(folder)
    check_place(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise FvitError(f"cannot write {target}: {error.strerror}") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        old = temporary.with_name(temporary.name + "-old")
        try:
            if target.exists():
                target.rename(old)
            temporary.rename(target)
        except BaseException:  # an interruption too
            if old.exists() and not target.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise FvitError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_place(target: Path, *, made_from: Bundle | None = None) -> None:
    """Raise FvitError where no bundle can be written: see write_bundle. made_from: the bundle that the new
    one is to be compared with, in whose place it cannot be written."""
    if target == Path(demo.NAME):
        raise FvitError(f"{demo.NAME} is what the embedded bundle is called: name another folder")
    if not target.name:
        raise FvitError(f"{target} has no name of its own: name the folder that the bundle is to be")
    if made_from is not None and target.resolve() == made_from.folder.resolve():
        raise FvitError(f"{target} is the bundle that the new one is made from: name another folder")
    if target.is_symlink():
        raise FvitError(f"{target} is a link: name the folder itself")
    _check_replaceable(target)


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, with the SHA-256 of every file that lies in the folder."""
    names = sorted(file.name for file in folder.iterdir())
    with _opened(folder) as there:
        files = {name: _sha256(folder, there, name) for name in names}
    fields = {"format": FORMAT} | manifest.model_dump(exclude={"files"}) | {"files": files}
    (folder / MANIFEST).write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The folder as a descriptor: what is read through it lies in this folder, whatever its path becomes."""
    try:
        there = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, ValueError):  # ValueError: a NUL in the path
        raise FvitError(f"{path} does not exist: make one with  fvit-export demo {path}") from None
    except NotADirectoryError:
        raise FvitError(f"{path} is no bundle (it is no folder): make one with  fvit-export demo") from None
    except OSError as error:
        raise FvitError(f"{path} cannot be read: {error.strerror}") from error
    try:
        yield there
    finally:
        os.close(there)


def _open_file(path: Path, there: int, name: str) -> int:
    """A regular file of the folder, and neither what a link leads to, nor a device, nor a pipe."""
    try:
        # Without waiting, because opening a pipe waits for somebody to write to it.
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=there)
        if stat.S_ISREG(os.fstat(opened).st_mode):
            return opened
        os.close(opened)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
    raise FvitError(f"{path / name} is no regular file: a bundle holds no links, pipes, devices or folders")


def _read_manifest(path: Path, there: int) -> bytes:
    try:
        with os.fdopen(_open_file(path, there, MANIFEST), "rb") as file:
            text = file.read(LARGEST_MANIFEST + 1)
    except FileNotFoundError:
        raise FvitError(
            f"{path} is no bundle (it has no {MANIFEST}): make one with  fvit-export demo {path}"
        ) from None
    except OSError as error:
        raise FvitError(f"{path / MANIFEST} cannot be read: {error.strerror}") from error
    if len(text) > LARGEST_MANIFEST:
        raise FvitError(f"{path / MANIFEST} is damaged (larger than 4 MiB): export the bundle again")
    return text


def _parsed(path: Path, text: bytes) -> Manifest:
    def damaged(what: str) -> FvitError:
        return FvitError(f"{path / MANIFEST} is damaged ({_in_one_line(what)}): export the bundle again")

    try:
        fields = json.loads(text.decode(), object_pairs_hook=once_each, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise damaged(str(error)) from error
    if not isinstance(fields, dict):
        raise damaged("it is no JSON object")
    version = fields.pop("format", None)
    if type(version) is not int:
        raise damaged("format: a whole number is required")
    if version != FORMAT:
        raise FvitError(
            f"{path}: bundle format {_short(version)}, this fvit reads format {FORMAT}: make a new one with  "
            f"fvit-export demo {path}  or  fvit-export model {path} --classifier … --denoiser …"
        )
    try:
        manifest = Manifest.model_validate(
            {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        said = first["msg"].removeprefix("Value error, ")
        found = "" if first["type"] in ("missing", "value_error") else f", not {_short(first['input'])}"
        raise damaged(": ".join(filter(None, [_field(first["loc"]), said + found]))) from error
    for graph in (DENOISER, CLASSIFIER):
        if graph not in manifest.files:
            raise damaged(f"files: {graph} is not listed")
    for name in (MANIFEST, PLANS):
        if name in manifest.files:
            raise damaged(f"files: {name} cannot be listed")
    return manifest


class Twice(ValueError):
    """A field that an object of JSON has twice."""


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields: readers of JSON differ in which of two of one name they take. Raises Twice."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise Twice(f"{name} is there twice")
        fields[name] = value
    return fields


def _integer(digits: str) -> int | float:
    # Python refuses to read integers of thousands of digits, without saying where they are.
    return int(digits) if len(digits) < 20 else float(digits)


def _field(place: tuple[int | str, ...]) -> str:
    """The place of a value as one would write it: labels[3], files['a.onnx']."""
    if not place:
        return ""
    inside = (part for part in place[1:] if part != "[key]")
    return f"{place[0]}" + "".join(f"[{part!r}]" for part in inside)


def _short(value: object) -> str:
    try:
        said = repr(value)
    except RecursionError:
        return "what it holds"
    return said if len(said) <= 60 else said[:57] + "…"


def _in_one_line(text: str) -> str:
    """Text with what breaks lines or steers a terminal written as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:500])


def _sides(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def _check_entries(path: Path, there: int, manifest: Manifest) -> None:
    """Raise FvitError where something lies in the folder that the manifest does not name."""
    with os.scandir(there) as entries:
        for entry in entries:
            if entry.name == PLANS and not entry.is_dir(follow_symlinks=False):
                raise FvitError(f"{path / PLANS} is no folder: remove it")
            if entry.name not in (MANIFEST, PLANS, *manifest.files):
                raise FvitError(
                    f"{path / _in_one_line(entry.name)} is not listed in {MANIFEST}: a bundle holds nothing "
                    "else, so remove the file or export the bundle again"
                )


def _check_replaceable(target: Path) -> None:
    """Raise FvitError where the target exists and holds anything but a bundle of some format."""
    if not os.path.lexists(target):
        return
    try:
        with _opened(target) as there:
            text = _read_manifest(target, there)
    except FvitError as error:
        raise FvitError(f"{target} exists and is no bundle: choose another place or remove it") from error
    try:
        listed = set(json.loads(text)["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        listed = {DENOISER, CLASSIFIER}
    held = {entry.name for entry in target.iterdir()}
    if foreign := sorted(held - listed - {MANIFEST, PLANS}):
        raise FvitError(
            f"{target} holds {_in_one_line(foreign[0])}, which is no part of the bundle there: choose "
            "another place or remove it"
        )


def _sha256(path: Path, there: int, name: str) -> str:
    digest = hashlib.sha256()
    try:
        with os.fdopen(_open_file(path, there, name), "rb") as opened:
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise FvitError(
            f"{path / name} cannot be read ({error.strerror}): export the bundle again"
        ) from error
    return digest.hexdigest()


def _quantised(graph: Path) -> bool:
    """Whether any node of a graph quantises: what it is called stands in the file as it is."""
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return whole.find(b"QuantizeLinear") >= 0


def _check_graph(
    graph: Path,
    engine: Engine,
    *,
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, tuple[int, ...]],
) -> None:
    """One graph against the shapes, less the batch, that its tensors must have."""
    batches: dict[str, int | None] = {}
    for kind, tensors, wanted in (("input", engine.inputs, inputs), ("output", engine.outputs, outputs)):
        found = {tensor.name: tensor for tensor in tensors}
        if found.keys() != wanted.keys():
            raise FvitError(
                f"{graph}: its {kind}s are {_names(found)}, not {_names(wanted)}: export the bundle again"
            )
        for name, shape in wanted.items():
            tensor = found[name]
            if tensor.dtype != np.float32 or not tensor.shape or tensor.shape[1:] != shape:
                sides = ", ".join(["B", *map(str, shape)])
                raise FvitError(
                    f"{graph}: {kind} {name} is {_described(tensor)}, but {MANIFEST} makes it float32 "
                    f"[{sides}]: export the bundle again"
                )
            batches[name] = tensor.shape[0]
    if len(set(batches.values())) > 1:
        said = ", ".join(f"{name} {batch or 'any'}" for name, batch in batches.items())
        raise FvitError(f"{graph}: its batch differs between tensors ({said}): export the bundle again")


def _described(tensor: Tensor) -> str:
    sides = ", ".join("any" if side is None else str(side) for side in tensor.shape)
    return f"{tensor.dtype} [{sides}]"


def _names(tensors: Mapping[str, Any]) -> str:
    return _in_one_line(", ".join(sorted(tensors)) or "none")
