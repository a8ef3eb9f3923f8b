"""Whatever is typed: work is done, or one line says why it is not."""

import io
import json
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fvit.certificates.tally import Tally
from fvit.errors import FvitError
from fvit.extras import require_export
from fvit.runtime.bundle import Bundle
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.journal import NAME
from fvit.runtime.queue import Batch
from tests.commands import here
from tests.fuzz.test_records import record_of
from tests.fuzz.trying import promptly, tried
from tests.runtime.test_bundle import MANIFEST

OF_64_TOKENS = MANIFEST.model_copy(update={"grid": (8, 8)})


class Agreeing:
    """A device that takes any number of copies at once: all of them say the same."""

    rows, grain, ahead = 10**9, 1, 0

    def begin(self, batch: Batch) -> Callable[[], list[Tally]]:
        return lambda: [agreeing(stretch.tally.empty(), len(copies)) for stretch, copies in batch]

    def close(self) -> None:
        """There is nothing to release."""


def agreeing(tally: Tally, copies: int) -> Tally:
    one = tally.empty()
    attribution = np.linspace(2, 0, tally.tokens) / tally.tokens
    one.add(np.array([[1, 0]], np.float32), attribution[None].astype(np.float32))
    tally.copies = copies
    for whole, part in ((tally.counts, one.counts), (tally.votes, one.votes), (tally.sums, one.sums)):
        whole += part * copies
    tally.wealth += one.wealth * copies
    return tally


@pytest.fixture(scope="module")
def model() -> Iterator[FaithfulViT]:
    pipeline = SimpleNamespace(
        image_size=MANIFEST.image_size, schedule=MANIFEST.schedule, classes=2, tokens=OF_64_TOKENS.tokens,
        engine="agreeing", precision="fp32", close=lambda: None,
    )  # fmt: skip
    with FaithfulViT(Bundle(Path("b"), OF_64_TOKENS, "b" * 64), pipeline, [Agreeing()], device="cpu") as vit:  # type: ignore[arg-type]
        yield vit


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies about, as each example finds it: images, folders, notes, records, keys."""
    folder = tmp_path_factory.mktemp("kept") / "place"
    (folder / "images").mkdir(parents=True)
    for name in ("empty", "photos", "done"):
        (folder / name).mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (0, 0, 80 * number)).save(folder / "photos" / f"{number}.png")
    for name, colour in (("a.png", "red"), ("[b]\n.png", "blue"), ("c.gif", "red")):
        Image.new("RGB", (8, 8), colour).save(folder / "images" / name)
    (folder / "notes.txt").write_text("my notes\n")
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG")
    (folder / NAME).write_text("{}\n")
    (folder / "list").write_text("images/a.png\nimages\n\n*.png\n")
    (folder / "done" / NAME).write_text(json.dumps(record_of()) + "\n")
    (folder / "keys").write_text(f"anna {'0' * 32} {'0' * 64}\n")
    (folder / "labels.csv").write_text("file,label\na.png,0\nc.gif,b\nbroken.png,1\n")
    return folder


PLACES = st.sampled_from(
    [
        "images", "images", "images/a.png", "images/broken.png", "empty", "notes.txt", NAME, "absent", "out",
        "", ".", "/dev/null", "/dev/zero", "/proc/self/mem", "/sys/x", "o" * 300, "*", "**/*.png", "[",
        "list", "labels.csv", "photos", "done", "keys",
    ]
)  # fmt: skip
COUNTS = st.sampled_from(
    ["24", "60", "1000", "1000000000", "1000000001", "0", "-1", "10", "5", "64", "9" * 40]
)
FLOATS = st.sampled_from(
    ["0.25", "0.5", "0.1", "0.8", "1", "0", "1e-6", "1e-300", "5e-324", "1e300", "nan", "inf", "-inf", "-0.0"]
) | st.floats().map(str)
TEXTS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10
) | st.sampled_from(
    [
        "vote",
        "mean",
        "cpu",
        "auto",
        "[red]",
        "\x1b[2J",
        "\udce9",
        "--",
        "-h",
        "٣",
        "½",
        "",
        " 7 ",
        "9" * 5000,
        "0x10",
    ]
)
Options = dict[str, st.SearchStrategy[str] | None]


def one_of(*usual: str) -> st.SearchStrategy[str]:
    """One of these, or whatever may stand in its place."""
    return st.sampled_from(usual) | PLACES | TEXTS


LABELS = PLACES | st.just("folders")
TRAINING: Options = {
    "--images": PLACES, "--sigmas": one_of("0.12:1", "0.25:0.5", "1:0.12", "nan:1", "1e-9:1", "0.5", ":"),
    "--hours": FLOATS, "--steps": COUNTS, "--batch": COUNTS, "--rate": FLOATS, "--seed": COUNTS,
    "--mixed-precision": one_of("no", "bf16", "fp16", "fp12"), "--precision": one_of("fp32", "fp16", "int8"),
    "--labels": LABELS, "--masks": PLACES, "--held-out": COUNTS, "--n": COUNTS, "--device": TEXTS,
}  # fmt: skip
TRAIN = ("--images", "photos", "--held-out", "1", "--steps", "1")


@dataclass(frozen=True)
class Command:
    """Of a command: its name in fvit.commands, what is typed but for options, the options that it needs, and
    all that it has."""

    name: str
    words: Sequence[str | st.SearchStrategy[str]]
    needed: Sequence[str]
    options: Options


COMMANDS = {
    "certify": Command("certify", ["bundle", "images"], (), {
        "--sigma": FLOATS, "--n": COUNTS, "--alpha": FLOATS, "--top-k": COUNTS, "--beta": FLOATS,
        "--radius": FLOATS, "--seconds": FLOATS, "--seed": COUNTS,
        "--aggregate": st.sampled_from(["vote", "mean", "median"]),
        "--batch": COUNTS, "--device": TEXTS, "--max-pixels": COUNTS, "--save-input": None, "--out": PLACES,
        "--list": PLACES | st.just("-"), "--recursive": None, "--labels": LABELS,
        "--at": FLOATS, "--format": st.sampled_from(["jsonl", "parquet", "csv"]), "--no-pictures": None,
        "--quiet": None, "--summary": PLACES, "--cores": COUNTS,
        "--ray": st.sampled_from(["auto", "local", "127.0.0.1:1", "[::1]:1", "ray://a:1", "images/a.png"]),
    }),
    "verify": Command("verify", [NAME], (), {
        "--bundle": PLACES, "--images": PLACES, "--device": TEXTS, "--max-pixels": COUNTS,
        "--max-copies": COUNTS,
    }),
    "evaluate": Command("evaluate", ["bundle", one_of("images", "photos", "labels.csv")], ("--out", "out"), {
        "--out": PLACES, "--limit": COUNTS, "--sigma": FLOATS, "--n": COUNTS, "--alpha": FLOATS,
        "--top-k": COUNTS, "--beta": FLOATS, "--perturbed-n": COUNTS, "--adversarial": None,
        "--attack-steps": COUNTS, "--classifier-weights": PLACES, "--denoiser": one_of("images"),
        "--adm-flags": TEXTS, "--null-class": COUNTS, "--seed": COUNTS, "--batch": COUNTS, "--device": TEXTS,
        "--quiet": None, "--max-pixels": COUNTS,
    }),
    "report": Command("report", [one_of("done")], (), {}),
    "serve": Command("serve", [one_of("demo", "a=bundle", "=", "a b=demo")], (), {
        "--host": one_of("127.0.0.1", "::1", "0.0.0.0", "localhost", "300.1.1.1"),
        "--port": COUNTS | st.sampled_from(["0", "65536"]), "--device": TEXTS, "--batch": COUNTS | TEXTS,
        "--keys": one_of("keys"), "--open-to-all": None, "--max-n": COUNTS, "--max-waiting": COUNTS,
        "--max-seconds": FLOATS, "--max-body": COUNTS, "--max-pixels": COUNTS,
        "--requests-a-minute": COUNTS, "--copies-a-minute": COUNTS, "--drain": FLOATS,
    }),
    "serve key": Command("serve", ["key", one_of("keys", "new"), one_of("anna", "otto")], (), {}),
    "export": Command("export", [one_of("demo", "model", "engine", "list"), "bundle"], (), {
        "--precision": TEXTS, "--classifier": TEXTS, "--denoiser": PLACES, "--batch": COUNTS,
    }),
    "export distill": Command("export", ["distill", "demo", one_of("new")], TRAIN, TRAINING | {
        "--size": one_of("tiny", "base"), "--share": FLOATS,
    }),
    "export tune": Command("export", ["tune", "demo", one_of("new")], TRAIN, TRAINING | {
        "--classifier-weights": PLACES,
    }),
    "export triton": Command("export", ["triton", "demo", one_of("models")], (), {
        "--name": one_of("fvit", "a b", ".", "1"),
        "--device": one_of("cpu", "openvino", "tensorrt", "cuda:0,1", "cuda:", "cuda:" + "9" * 5000),
    }),
}  # fmt: skip
STRANGE: Options = {
    "--n0": COUNTS, "--version": None, "--help": None, "-n": COUNTS, "--s": TEXTS, "--surprise": TEXTS,
}  # fmt: skip


@st.composite
def typed(draw: st.DrawFn, command: Command) -> list[str]:
    """What follows the command's name."""
    words = [word if isinstance(word, str) else draw(word) for word in command.words]
    if draw(st.integers(0, 4)) == 0:
        kept = len(words) - len(command.words[1:]) if command.name in ("export", "serve") else 0
        words = words[:kept] + draw(st.lists(PLACES, max_size=4))
    words += command.needed
    for _ in range(draw(st.integers(0, 4))):
        options = command.options if draw(st.integers(0, 19)) else STRANGE
        option = draw(st.sampled_from(sorted(options or STRANGE)))
        if (values := (options or STRANGE)[option]) is None:
            words.append(option)
            continue
        value = draw(values if draw(st.integers(0, 19)) else TEXTS)
        words += draw(st.sampled_from([[option, value]] * 9 + [[f"{option}={value}"], [option]]))
    return words


def refuse(*_: object, **named: object) -> None:
    """In the place of what takes long; no argument is to be no number."""
    assert all(value == value for value in named.values()), named
    raise FvitError("this takes too long here")


LONG_WORK = {
    "evaluate": ("evaluation.cli.require_export", "evaluation.evaluate.Evaluation.run"),
    "serve": ("runtime.loading.load",),
    "export": ("export.cli.require_export",),
    "export distill": ("export.distillation.train_student",),
    "export tune": ("export.tuning.train_classifier",),
}
"""By command, what is refused in the end."""


def stand_ins(patch: pytest.MonkeyPatch, name: str, model: FaithfulViT) -> None:
    """In the place of all that takes long, or leaves this machine."""
    for place in ("runtime.cli", "runtime.verifying", "evaluation.cli"):
        patch.setattr(f"fvit.{place}.load", lambda *_, **__: nullcontext(model))
    patch.setattr("fvit.runtime.certifier.draw", lambda *found: found[-1].touch())
    patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"images/a.png\0absent")))
    for place in LONG_WORK.get(name, ()):
        patch.setattr(f"fvit.{place}", refuse)
    if name == "serve":
        asked = socket.getaddrinfo

        def numeric(host: str, port: int, *, flags: int, **named: Any) -> Any:
            return asked(host, port, flags=flags | socket.AI_NUMERICHOST, **named)

        patch.setattr("socket.getaddrinfo", numeric)
        patch.setattr("resource.setrlimit", lambda *_: None)
    if name in ("export distill", "export tune"):
        require_export("what is imported now and not while it is watched")
        from fvit.export.rebuilding import rebuild

        patch.setattr("fvit.export.distillation.LEAST", 2)
        for place in (
            "comparing.load",
            "comparing.open_engine",
            "distillation.teacher_of",
            "tuning.teacher_of",
        ):
            patch.setattr(f"fvit.export.{place}", lambda *_, **__: SimpleNamespace(close=lambda: None))
        patch.setattr(
            "fvit.export.comparing.classified", lambda _, files, **__: (np.zeros((len(files), 10)), None)
        )
        patch.setattr(
            "fvit.export.tuning.rebuild", lambda bundle, weights: weights and rebuild(bundle, weights=weights)
        )


@pytest.mark.parametrize("name", COMMANDS)
@tried(20)
@given(data=st.data())
def test_a_command_line_is_done_or_refused_in_one_line(
    name: str, data: st.DataObject, model: FaithfulViT, kept: Path
) -> None:
    command = COMMANDS[name]
    words = data.draw(typed(command))
    place = kept.with_name("work")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(kept, place)
    with pytest.MonkeyPatch.context() as patch:
        stand_ins(patch, name, model)
        patch.chdir(place)
        with promptly():
            done = here(command.name, *words)
    lines = done.stderr.splitlines()
    assert all(line.isprintable() for line in done.stderr.split("\n")), done.stderr
    errors = [line for line in lines if line.startswith("error: ")]
    if done.status == 2:
        assert len(lines) == 1 and errors if words else not errors
    elif done.status == 1 and name == "certify":
        # Images that cannot be read have a line each, and are gone on from.
        assert lines[-1:] == errors[-1:] or "images could not be certified" in lines[-1]
    elif done.status == 1 and name == "verify":
        assert errors or done.stdout
    elif done.status == 1:
        assert lines[-1:] == errors
    else:
        assert done.status == 0 and not errors
