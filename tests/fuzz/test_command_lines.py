"""Whatever is typed: work is done, or one line says why it is not."""

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fvit.certificates.tally import Tally
from fvit.errors import FvitError
from fvit.export import cli as exporting
from fvit.runtime import cli, pictures, verifying
from fvit.runtime.bundle import Bundle
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.journal import NAME
from fvit.runtime.queue import Batch
from tests.commands import here
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
    """What lies about, as each example finds it: images, folders, notes, records."""
    folder = tmp_path_factory.mktemp("kept") / "place"
    (folder / "images").mkdir(parents=True)
    (folder / "empty").mkdir()
    for name, colour in (("a.png", "red"), ("[b]\n.png", "blue"), ("c.gif", "red")):
        Image.new("RGB", (8, 8), colour).save(folder / "images" / name)
    (folder / "notes.txt").write_text("my notes\n")
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG")
    (folder / NAME).write_text("{}\n")
    (folder / "list").write_text("images/a.png\nimages\n\n*.png\n")
    (folder / "labels.csv").write_text("file,label\na.png,0\nc.gif,b\nbroken.png,1\n")
    return folder


PLACES = st.sampled_from(
    [
        "images", "images", "images/a.png", "images/broken.png", "empty", "notes.txt", NAME, "absent", "out",
        "", ".", "/dev/null", "/dev/zero", "/proc/self/mem", "/sys/x", "o" * 300, "*", "**/*.png", "[",
        "list", "labels.csv",
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
OPTIONS: dict[str, dict[str, st.SearchStrategy[str] | None]] = {
    "certify": {
        "--sigma": FLOATS, "--n": COUNTS, "--alpha": FLOATS, "--top-k": COUNTS, "--beta": FLOATS,
        "--radius": FLOATS, "--seconds": FLOATS, "--seed": COUNTS,
        "--aggregate": st.sampled_from(["vote", "mean", "median"]),
        "--batch": COUNTS, "--device": TEXTS, "--max-pixels": COUNTS, "--save-input": None, "--out": PLACES,
        "--list": PLACES | st.just("-"), "--recursive": None, "--labels": PLACES | st.just("folders"),
        "--at": FLOATS, "--format": st.sampled_from(["jsonl", "parquet", "csv"]), "--no-pictures": None,
        "--quiet": None, "--summary": PLACES, "--cores": COUNTS,
        "--ray": st.sampled_from(["auto", "local", "127.0.0.1:1", "[::1]:1", "ray://a:1", "images/a.png"]),
    },
    "verify": {"--bundle": PLACES, "--images": PLACES, "--device": TEXTS, "--max-pixels": COUNTS},
    "export": {"--precision": TEXTS, "--classifier": TEXTS, "--denoiser": PLACES, "--batch": COUNTS},
}  # fmt: skip
STRANGE: dict[str, st.SearchStrategy[str] | None] = {
    "--n0": COUNTS, "--version": None, "--help": None, "-n": COUNTS, "--s": TEXTS, "--surprise": TEXTS,
}  # fmt: skip


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    command = draw(st.sampled_from(["certify", "certify", "verify", "export"]))
    words = {
        "certify": ["bundle", "images"], "verify": [NAME],
        "export": [draw(st.sampled_from(["demo", "model", "engine", "list", "surprise"])), "bundle"],
    }[command]  # fmt: skip
    if draw(st.integers(0, 4)) == 0:
        words = draw(st.lists(PLACES, max_size=4))
    for _ in range(draw(st.integers(0, 4))):
        options = OPTIONS[command] if draw(st.integers(0, 19)) else STRANGE
        option = draw(st.sampled_from(sorted(options)))
        if (values := options[option]) is None:
            words.append(option)
            continue
        value = draw(values if draw(st.integers(0, 19)) else TEXTS)
        words += draw(st.sampled_from([[option, value]] * 9 + [[f"{option}={value}"], [option]]))
    return command, words


@tried(20)
@given(asked=command_lines())
def test_a_command_line_is_done_or_refused_in_one_line(
    asked: tuple[str, list[str]], model: FaithfulViT, kept: Path
) -> None:
    command, words = asked
    place = kept.with_name("work")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(kept, place)
    with pytest.MonkeyPatch.context() as patch:
        for module in (cli, verifying):
            patch.setattr(module, "load", lambda *_, **__: nullcontext(model))
        patch.setattr(pictures, "write_picture", lambda *_, file: file.touch())
        patch.setattr(exporting, "require_export", refuse)
        patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"images/a.png\0absent")))
        patch.chdir(place)
        with promptly():
            done = here(command, *words)
    lines = done.stderr.splitlines()
    assert all(line.isprintable() for line in done.stderr.split("\n")), done.stderr
    errors = [line for line in lines if line.startswith("error: ")]
    if done.status == 2:
        assert len(lines) == 1 and errors if words else not errors
    elif done.status == 1 and command == "certify":
        assert len(errors) == 1 or "images could not be certified" in lines[-1]
    elif done.status == 1:
        assert errors or done.stdout
    else:
        assert done.status == 0 and not errors


def refuse(_: str) -> None:
    raise FvitError("exports take too long for this")
