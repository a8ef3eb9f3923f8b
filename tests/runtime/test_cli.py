import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import fvit
from fvit.certificates.decisions import Answer
from fvit.certificates.record import Certificate
from fvit.certificates.verify import verify
from fvit.errors import FvitError
from fvit.runtime import cli, pictures, run
from fvit.runtime.images import read_image
from fvit.runtime.journal import LOCK, NAME, Journal
from fvit.runtime.plain import classify_plain
from fvit.runtime.summary import Summary
from fvit.runtime.thumbnails import FOLDER
from fvit.runtime.truth import read_truth
from tests.commands import Ended, ended, here, obey_modes, started

FAST = ("--n", "40", "--alpha", "0.1")
Certify = Callable[..., Ended]


@pytest.fixture
def certify(vit: fvit.FaithfulViT, monkeypatch: pytest.MonkeyPatch) -> Certify:
    """fvit-certify with the demo bundle, which is loaded once for all tests."""
    monkeypatch.setattr(cli, "load", lambda *_, **__: nullcontext(vit))
    monkeypatch.setattr("fvit.runtime.cli.console.width", 200)  # it was made when the module was loaded
    return partial(here, "certify", vit.bundle.folder)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty files, which take no time."""
    monkeypatch.setattr(pictures, "write_picture", lambda *_, file: file.touch())


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / NAME).read_bytes().splitlines()]


def without_seconds(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "seconds"}


def test_rows_records_and_pictures(
    certify: Certify, vit: fvit.FaithfulViT, samples: list[Path], tmp_path: Path
) -> None:
    done = certify(*samples[:2], *FAST, "--out", tmp_path)
    assert (done.status, done.stderr) == (0, "")
    for sample in samples[:2]:
        assert sample.stem in done.stdout
    assert f"records and pictures are in {tmp_path}" in done.stdout
    assert [record["image"] for record in records(tmp_path)] == [str(sample) for sample in samples[:2]]
    assert [verify(record) for record in records(tmp_path)] == [[], []]
    drawn = list(tmp_path.glob("*.png"))
    assert len(drawn) == 2
    assert all(Image.open(picture).width > 1000 for picture in drawn)
    assert {file.name for file in tmp_path.iterdir()} == {NAME, FOLDER, *(file.name for file in drawn)}
    for record in records(tmp_path):
        strip, plain = (tmp_path / FOLDER / f"{record['pixels_sha256']}.{kind}" for kind in ("webp", "png"))
        assert Image.open(strip).size == (3 * 64, 64)
        assert (Image.open(plain).size, Image.open(plain).mode) == ((8, 8), "L")
        image = np.asarray(Image.open(record["image"]).convert("RGB"), float)
        shown = np.asarray(Image.open(strip).convert("RGB"), float)[:, :64]
        assert np.abs(shown - image).mean() < 6
        (attribution,) = classify_plain(vit, read_image(record["image"], size=(64, 64)).pixels[None])[1]
        assert np.abs(np.asarray(Image.open(plain)).ravel() - 255 * attribution / attribution.max()).max() < 1


@pytest.mark.usefixtures("undrawn")
def test_a_second_run_does_the_rest_and_each_image_has_a_seed_of_its_own(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    """Which nobody knew before the image was read; a seed that is given is another question."""
    certify(samples[0], *FAST, "--out", tmp_path)
    before = (tmp_path / NAME).read_bytes()
    done = certify(*samples[:3], *FAST, "--out", tmp_path)
    assert "1 of them were done before" in done.stdout
    assert (tmp_path / NAME).read_bytes().startswith(before)
    assert [record["image"] for record in records(tmp_path)] == [str(sample) for sample in samples[:3]]
    assert len({record["seed"] for record in records(tmp_path)}) == 3
    assert "done before" not in certify(samples[0], *FAST, "--seed", "5", "--out", tmp_path).stdout
    assert records(tmp_path)[-1]["seed"] == 5


@pytest.mark.usefixtures("undrawn")
def test_two_runs_do_not_share_a_seed(certify: Certify, samples: list[Path], tmp_path: Path) -> None:
    for out in ("a", "b"):
        certify(samples[0], *FAST, "--out", tmp_path / out)
    one, other = (records(tmp_path / out)[0] for out in ("a", "b"))
    assert one["seed"] != other["seed"]
    assert one["attention"]["votes"] != other["attention"]["votes"]


@pytest.mark.usefixtures("undrawn")
def test_a_record_that_a_crash_cut_off_is_done_again_as_it_was(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    certify(*samples[:2], *FAST, "--seed", "1", "--out", tmp_path)
    whole = records(tmp_path)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-40])
    assert certify(*samples[:2], *FAST, "--seed", "1", "--out", tmp_path).status == 0
    assert [*map(without_seconds, records(tmp_path))] == [*map(without_seconds, whole)]


@pytest.mark.usefixtures("undrawn")
def test_an_image_that_is_named_twice_is_done_once(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    Image.open(samples[0]).save(tmp_path / "same.bmp")
    done = certify(samples[0], samples[0], tmp_path / "same.bmp", *FAST, "--out", tmp_path / "out")
    assert done.status == 0
    assert done.stderr.splitlines() == [
        f"{name} has the pixels of {samples[0]}, and is done once"
        for name in (samples[0], tmp_path / "same.bmp")
    ]
    assert len(records(tmp_path / "out")) == 1
    again = certify(samples[0], samples[0], *FAST, "--out", tmp_path / "out")
    assert "1 of them were done before" in again.stdout
    assert "is done once" in again.stderr


@pytest.mark.usefixtures("undrawn")
def test_what_was_found_in_a_folder_is_said_and_the_good_images_are_done(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a-text.png").write_text("no image")
    (folder / "b-truncated.png").write_bytes(samples[0].read_bytes()[:1000])
    shutil.copy(samples[0], folder / "c-good.png")
    Image.new("L", (90, 50)).save(folder / "d-grey-and-small.png")
    Image.new("L", (90, 60), 9).save(folder / "d-small-too.png")  # of which no more is said
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "e-moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (300, 300)).save(folder / "f-large.png")
    os.mkfifo(folder / "g-pipe.png")
    done = certify(folder, *FAST, "--max-pixels", "80000", "--out", tmp_path / "out")
    assert done.status == 1
    for said in (
        "a-text.png is not an image",
        "b-truncated.png is a damaged image",
        "d-grey-and-small.png: resized from 90×50 to 64×64",
        "e-moving.gif has more than one frame: the first is certified",
        "f-large.png has 300×300 pixels, more than 80,000",
        "g-pipe.png is skipped: is a pipe",
        "3 of 7 images could not be certified",
    ):
        assert said in done.stderr
    assert len(done.stderr.splitlines()) == 7
    kept = [Path(record["image"]).name for record in records(tmp_path / "out")]
    assert kept == ["c-good.png", "d-grey-and-small.png", "d-small-too.png", "e-moving.gif"]


@pytest.mark.usefixtures("undrawn")
def test_whatever_files_are_called_they_are_named_right_everywhere(certify: Certify, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "[red]o\nut"
    folder.mkdir()
    names = [
        "two\nlines.png", "line\u2028separator.png", "[bold]mark.png", "\x1b[2Jcleared.png", "Þorn $x^$.png",
        os.fsdecode(b"caf\xe9.png"), "x" * 251 + ".png",
    ]  # fmt: skip
    for i, name in enumerate(names):
        Image.new("RGB", (64, 64), (30 * i, 80, 120)).save(folder / name)
    done = certify(folder, *FAST, "--out", out)
    assert (done.status, done.stderr) == (0, "")
    assert len(done.stdout.split("\n")) == len(done.stdout.splitlines()) + 1  # no other ends of lines
    shown = ("two\\nlines", "line\\u2028sep", "[bold]mark", "\\x1b[2Jcleared", "Þorn $x^$", "caf\\xe9")
    for name in (*shown, "[red]o\\nut"):
        assert name in done.stdout
    assert sorted(record["image"] for record in records(out)) == sorted(str(folder / name) for name in names)
    assert len(list(out.glob("*.png"))) == len(names)
    done = here("verify", out / NAME)
    assert done.status == 0
    assert all(name in done.stdout for name in shown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sigma", "100"), "choose σ between"),
        (("--sigma", "0"), "σ = 0 is outside this denoiser's noise schedule"),
        (("--sigma", "nan"), "σ = nan is outside this denoiser's noise schedule"),
        (("--top-k", "65"), "k = 65: this model has 64 tokens"),
        (("--top-k", "0"), "k = 0: this model has 64 tokens"),
        (("--top-k", "60", "--beta", "0.1"), "only 4 lie outside"),
        (("--top-k", "5", "--top-k", "5"), "each explanation size once"),
        (("--beta", "0"), "not in (0, 1]"),
        (("--beta", "1.5"), "not in (0, 1]"),
        (("--alpha", "0"), "not in (0, 1)"),
        (("--alpha", "1e-300"), "alpha = 1e-300 is no more than"),
        (("--n", "15"), "n = 15 copies cannot certify any positive radius at alpha = 0.001"),
        (("--n", "0"), "n = 0: use 1 to 1000000000"),
        (("--n", "1000000001"), "n = 1000000001: use 1 to 1000000000"),
        (("--n", "1" + 30 * "0"), "n is a number of 100 bits"),
        (("--seed", "-1"), "seed = -1"),
        (("--seed", str(2**64)), "seed is a number of 65 bits"),
        (("--radius", "0"), "must be positive"),
        (("--radius", "0.9"), "use n ≥"),
        (("--radius", "50"), "lower the radius"),
        (("--n0", "100"), "--n0 is not needed"),
        (("--radius", "1", "--seconds", "1"), "give one of them"),
        (("--seconds", "0"), "--seconds 0: give a positive time"),
        (("--seconds", "nan"), "--seconds nan: give a positive time"),
        (("--save-input",), "give --out"),
        (("--batch", "many"), "batch = many: give a number of copies, or auto"),
    ],
)
def test_terms_that_cannot_hold_end_in_one_line_before_any_work(
    certify: Certify, samples: list[Path], options: tuple[str, ...], message: str
) -> None:
    done = certify(samples[0], *options)
    assert message in done.refusal
    assert done.status == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--n", "many"), "'--n'"),
        (("--max-pixels", "0"), "'--max-pixels'"),
        (("--aggregate", "median"), "'--aggregate'"),
        (("--surprise",), "--surprise"),
        (("--\x1b[2J\n",), "--\\x1b[2J"),
        (("--sigma",), "--sigma"),
    ],
)
def test_options_that_there_are_not_end_in_one_line_too(
    certify: Certify, samples: list[Path], options: tuple[str, ...], named: str
) -> None:
    done = certify(samples[0], *options)
    assert named in done.refusal and done.refusal.endswith("see --help")
    assert done.status == 2


def test_sixteen_copies_are_indeed_enough(certify: Certify, samples: list[Path]) -> None:
    assert certify(samples[0], "--n", "16").status == 0


def test_the_ends_of_what_may_be_asked_are_taken(certify: Certify, samples: list[Path]) -> None:
    done = certify(
        samples[0], "--beta", "1e-300", "--n", "1000000000", "--radius", "1e-300", "--alpha", "0.5"
    )
    assert done.status == 0, done.stderr


def test_places_that_are_not_there_or_cannot_be_used_are_named(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    for arguments, message in (
        ((tmp_path / "empty",), "holds no image"),
        ((tmp_path / "absent.png",), "does not exist"),
        ((samples[0], "--out", tmp_path / "file" / "out"), "cannot write"),
    ):
        done = certify(*arguments)
        assert message in done.refusal


def test_a_bundle_that_is_missing_or_was_changed_is_refused(
    demo_bundle: Path, samples: list[Path], tmp_path: Path
) -> None:
    assert "fvit-export demo" in here("certify", tmp_path / "absent", samples[0]).refusal
    spoiled = tmp_path / "bundle"
    shutil.copytree(demo_bundle, spoiled)
    data = bytearray((spoiled / "classifier.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (spoiled / "classifier.onnx").write_bytes(data)
    assert "classifier.onnx was changed" in here("certify", spoiled, samples[0]).refusal


@pytest.mark.usefixtures("undrawn")
def test_several_sizes_share_the_copies_and_come_with_their_curves(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    done = certify(samples[1], *FAST, "--top-k", "5", "--top-k", "10", "--out", tmp_path)
    assert done.status == 0, done.stderr
    assert "attention k=5" in done.stdout and "attention k=10" in done.stdout
    (record,) = records(tmp_path)
    assert record["copies"] == 40
    assert [explanation["k"] for explanation in record["explanations"]] == [5, 10]
    assert record["explanations"][0] == record["attention"]
    for explanation in record["explanations"]:
        betas, radii = zip(*explanation["radius_by_beta"], strict=True)
        assert list(betas) == sorted(betas, reverse=True)
        assert list(radii) == sorted(radii)  # a weaker claim holds at least as far


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("radius", "answers"), [("0.01", ["certified"]), ("0.2", get_args(Answer))])
def test_a_decision_says_how_many_copies_it_took(
    certify: Certify, samples: list[Path], tmp_path: Path, radius: str, answers: list[str]
) -> None:
    done = certify(samples[1], "--n", "60", "--alpha", "0.1", "--radius", radius, "--out", tmp_path)
    assert done.status == 0, done.stderr
    (record,) = records(tmp_path)
    answer = record["decision"]["answer"]
    assert answer in answers
    assert f"at radius {radius}" in done.stdout and answer in done.stdout
    assert answer != "undecided" or record["copies"] == 60


@pytest.mark.usefixtures("undrawn")
def test_seconds_end_a_refinement(certify: Certify, samples: list[Path], tmp_path: Path) -> None:
    assert certify(samples[1], "--seconds", "1e-9", "--out", tmp_path).status == 0
    (record,) = records(tmp_path)
    assert record["bound"] == "mixture" and "decision" not in record
    assert record["copies"] == 24
    assert verify(record) == []


@pytest.mark.usefixtures("undrawn")
def test_the_picture_that_is_certified_can_be_kept(certify: Certify, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    certify(tmp_path / "photo.png", *FAST, "--save-input", "--out", tmp_path / "out")
    (record,) = records(tmp_path / "out")
    (kept,) = (tmp_path / "out").glob("*-input.png")
    assert hashlib.sha256(np.asarray(Image.open(kept)).tobytes()).hexdigest() == record["pixels_sha256"]
    certify(kept, *FAST, "--seed", record["seed"], "--out", tmp_path / "again")
    (again,) = records(tmp_path / "again")
    assert again["class"] == record["class"] and again["attention"] == record["attention"]


def test_a_second_run_on_one_folder_is_told_who_has_it(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    with Journal(tmp_path):
        done = certify(samples[0], *FAST, "--out", tmp_path)
    assert f"{tmp_path} is in use by process {os.getpid()}" in done.refusal


@pytest.mark.usefixtures("undrawn")
def test_a_record_of_the_journal_that_was_altered_ends_in_no_traceback(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    certify(samples[0], *FAST, "--out", tmp_path)
    (record,) = records(tmp_path)
    for altered in (
        record | {"class": record["class"] | {"index": 77}},
        {name: value for name, value in record.items() if name != "class"} | {"class_": record["class"]},
        record | {"attention": record["attention"] | {"votes": []}},
        record | {"copies": 0},
    ):
        (tmp_path / NAME).write_text(json.dumps(altered) + "\n")
        done = certify(samples[0], *FAST, "--out", tmp_path)
        assert done.status == 0 or f"{NAME}, line 1 is no record" in done.refusal


def test_a_terminal_without_the_characters_gets_their_codes(certify: Certify, samples: list[Path]) -> None:
    done = certify(samples[0], *FAST, encoding="ascii")
    assert done.status == 0
    assert "\\u03c3 = 0.25" in done.stdout and samples[0].stem in done.stdout


@pytest.mark.usefixtures("undrawn")
def test_a_table_that_cannot_be_written_costs_no_record(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    with io.TextIOWrapper(open("/dev/full", "wb")) as full:  # noqa: PTH123
        done = certify(samples[0], *FAST, "--out", tmp_path, stdout=full)
    assert done.refusal == "error: cannot go on: No space left on device"
    assert len(records(tmp_path)) == 1


def test_commands_say_their_version(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("export", "certify", "verify"):
        done = here(command, "--version")
        assert (done.status, done.stdout, done.stderr) == (0, f"fvit {fvit.__version__}\n", "")
    with io.TextIOWrapper(open("/dev/full", "wb")) as full:  # noqa: PTH123
        assert "No space left" in here("verify", "--version", stdout=full).refusal


# Data sets as they come.


@pytest.fixture
def classes(samples: list[Path], tmp_path: Path) -> Path:
    """Samples in class folders, one of them in a wrong one."""
    for number, sample in enumerate(samples[:4]):
        folder = tmp_path / "val" / ("9" if number == 3 else sample.stem[-1])
        folder.mkdir(parents=True)
        shutil.copy(sample, folder)
    return tmp_path / "val"


@pytest.mark.usefixtures("undrawn")
def test_images_come_from_folders_in_folders_patterns_and_lists(
    certify: Certify, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(map(str, classes.rglob("*.png")))
    (tmp_path / "list.txt").write_text("\n".join(files))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("\0".join(files).encode())))
    for number, places in enumerate(
        [
            (classes, "--recursive"),
            (f"{classes}/*/*.png",),
            ("--list", tmp_path / "list.txt"),
            ("--list", "-"),
            (files[0], "--list", tmp_path / "list.txt"),
        ]
    ):
        done = certify(*places, *FAST, "--out", tmp_path / str(number))
        assert done.status == 0, done.stderr
        assert sorted(record["image"] for record in records(tmp_path / str(number))) == files
    assert "holds no image" in certify(classes, *FAST).refusal
    assert "there is no image" in certify(*FAST).refusal


@pytest.mark.usefixtures("undrawn")
def test_what_a_run_wrote_among_the_images_is_none_of_the_next_one(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    image = shutil.copy(samples[0], tmp_path)
    for places in ((tmp_path, "--recursive"), (f"{tmp_path}/**/*.*",)):
        for _ in range(2):
            done = certify(*places, *FAST, "--save-input", "--out", tmp_path / "out")
            assert done.status == 0
            assert [record["image"] for record in records(tmp_path / "out")] == [str(image)]
        assert done.stderr.endswith("is skipped: a picture of an earlier run, one of 4\n")
    elsewhere = certify(tmp_path, "--recursive", *FAST, "--out", tmp_path / "other")
    assert elsewhere.stderr.endswith("is skipped: a picture of an earlier run, one of 4\n")
    shutil.copy(samples[1], tmp_path)
    for _ in range(2):  # into the folder of the images itself
        assert certify(tmp_path, *FAST, "--save-input", "--out", tmp_path).status == 0
        assert len(records(tmp_path)) == 2


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("deciding", [(), ("--radius", "0.05")])
def test_with_labels_the_summary_says_how_much_is_certified_and_right(
    certify: Certify, classes: Path, tmp_path: Path, deciding: tuple[str, ...]
) -> None:
    asked = (classes, "--recursive", *FAST, *deciding, "--out", tmp_path / "out", "--seed", "1")
    done = certify(
        *asked, "--labels", "folders", "--at", "0", "--at", "0.1", "--summary", tmp_path / "s.json"
    )
    assert done.status == 0, done.stderr
    said = json.loads((tmp_path / "s.json").read_text())
    assert said["images"] == said["records"] == 4 and said["copies"] > 0
    kept = records(tmp_path / "out")
    for at, radius in zip(said["certified"], (0, 0.1), strict=True):
        holds = [record for record in kept if record["class"]["p_lower"] > 0.5 and reaches(record, radius)]
        right = [record for record in holds if record["class"]["label"] == Path(record["image"]).parent.name]
        assert at["radius"] == radius
        assert at["class"] == len(holds) / 4 and at["accuracy"] == len(right) / 4
        assert f"{25 * len(right):.1f} %" in done.stdout
    assert said["certified"][0]["accuracy"] == 0.75
    assert "certified accuracy" in done.stdout
    if deciding:
        assert sum(said["decisions"].values()) == 4 and said["terms"]["radius"] == 0.05

    again = certify(*asked, "--labels", "folders", "--summary", tmp_path / "again.json")
    assert again.status == 0
    resumed = json.loads((tmp_path / "again.json").read_text())
    assert (resumed["before"], resumed["copies"]) == (4, 0)
    assert [at["radius"] for at in resumed["certified"]] == [0, *map(float, deciding[1:])]
    assert resumed["certified"][0] == said["certified"][0]
    labels = read_truth(tmp_path / "out")  # which a report finds beside the records
    assert {record["pixels_sha256"]: Path(record["image"]).parent.name for record in kept} == {
        digest: label for digest, (_, label) in labels.items()
    }


def reaches(record: dict[str, Any], radius: float) -> bool:
    return bool(record["class"]["radius_l2"] >= radius)


def test_labels_that_do_not_fit_are_refused_before_any_work(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text(f"file,label\n{samples[0].name},0\n")
    done = certify(*samples[:2], *FAST, "--labels", tmp_path / "labels.csv")
    assert f"{samples[1]} has no label in" in done.refusal
    assert "folder 'samples' is no class of this bundle" in certify(
        samples[0], *FAST, "--labels", "folders"
    ).refusal  # fmt: skip


def test_a_table_without_labels_says_what_is_certified_where_that_is_asked(
    certify: Certify, samples: list[Path]
) -> None:
    done = certify(samples[0], *FAST, "--at", "0.05")
    assert "explanation certified" in done.stdout and "certified accuracy" not in done.stdout
    assert "explanation certified" not in certify(samples[0], *FAST).stdout


@pytest.mark.usefixtures("undrawn")
def test_quiet_says_what_goes_wrong_alone(certify: Certify, samples: list[Path], tmp_path: Path) -> None:
    Image.new("L", (90, 50)).save(tmp_path / "grey-and-small.png")
    good = (samples[0], samples[0], tmp_path / "grey-and-small.png", *FAST, "--at", "0", "--quiet")
    done = certify(*good, "--out", tmp_path / "out")
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / "text.png").write_text("no image")
    done = certify(tmp_path / "text.png", *good)
    assert (done.status, done.stdout) == (1, "")
    assert "text.png is not an image" in done.stderr
    assert "1 of 4 images could not be certified" in done.stderr


def test_records_alone_need_no_pictures(
    certify: Certify, samples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'fvit[plots]'" in certify(samples[0], *FAST, "--out", tmp_path).refusal
    assert "give --out" in certify(samples[0], *FAST, "--no-pictures").refusal
    done = certify(samples[0], *FAST, "--out", tmp_path, "--no-pictures")
    assert (done.status, done.stderr) == (0, "")
    assert f"records are in {tmp_path}" in done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]


@pytest.mark.usefixtures("undrawn")
def test_of_records_that_are_there_pictures_are_not_claimed_and_inputs_are_saved(
    certify: Certify, samples: list[Path], tmp_path: Path
) -> None:
    certify(samples[0], *FAST, "--out", tmp_path, "--no-pictures")
    done = certify(samples[0], *FAST, "--out", tmp_path, "--save-input")
    assert "1 of those have no picture" in done.stdout
    assert f"records are in {tmp_path}" in done.stdout
    (saved,) = tmp_path.glob("*-input.png")
    renamed = shutil.copy(samples[1], tmp_path / "first.png")
    certify(renamed, *FAST, "--out", tmp_path / "out")
    again = certify(Path(renamed).rename(tmp_path / "second.png"), *FAST, "--out", tmp_path / "out")
    assert "done before" in again.stdout and "no picture" not in again.stdout
    assert np.array_equal(np.asarray(Image.open(saved)), np.asarray(Image.open(samples[0]).convert("RGB")))


def test_what_a_run_came_to_is_told_even_where_its_summary_cannot_be_written(
    certify: Certify, samples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = certify(samples[0], *FAST, "--summary", tmp_path / "absent" / "s.json")
    assert "absent is no folder to write to" in refused.refusal

    def full(summary: Summary, file: Path) -> None:
        raise FvitError(f"cannot write {file}: No space left on device")

    monkeypatch.setattr(Summary, "write", full)
    done = certify(samples[0], *FAST, "--summary", tmp_path / "s.json")
    assert (done.status, done.stderr) == (
        1,
        f"error: cannot write {tmp_path / 's.json'}: No space left on device\n",
    )
    assert samples[0].stem in done.stdout


@pytest.mark.usefixtures("undrawn")
def test_parquet_is_made_of_all_records_at_the_end(
    certify: Certify, samples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certify(samples[0], *FAST, "--out", tmp_path)
    done = certify(*samples[:2], *FAST, "--out", tmp_path, "--format", "parquet")
    assert done.status == 0, done.stderr
    table = pyarrow.parquet.read_table(tmp_path / "certificates.parquet")
    assert table["image"].to_pylist() == [record["image"] for record in records(tmp_path)]
    assert table["attention_votes"].to_pylist() == [
        record["attention"]["votes"] for record in records(tmp_path)
    ]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    asked = (samples[0], *FAST, "--out", tmp_path, "--format", "parquet")
    assert "pip install 'fvit[parquet]'" in certify(*asked).refusal
    assert "give --out" in certify(samples[0], *FAST, "--format", "parquet").refusal


@pytest.mark.usefixtures("undrawn")
def test_rows_of_many_images_are_printed_as_tables_are_full(
    certify: Certify, samples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PAGE", 2)
    for _ in range(2):  # the second time they are there already
        done = certify(*samples[:5], *FAST, "--out", tmp_path)
        assert done.stdout.count("class radius") == 3
        assert all(sample.stem in done.stdout for sample in samples[:5])


def test_of_many_images_only_those_under_way_are_in_memory(
    certify: Certify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels and certificates both."""
    alive, most = Counter[str](), Counter[str]()

    def counted(kind: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **named: Any) -> Any:
            one = make(*arguments, **named)
            alive[kind] += 1
            most[kind] = max(most[kind], alive[kind])
            weakref.finalize(one, alive.subtract, {kind: 1})
            return one

        return made

    monkeypatch.setattr(run, "read_image", counted("picture", read_image))
    monkeypatch.setattr(Certificate, "of", counted("certificate", Certificate.of))
    for number in range(40):
        Image.new("RGB", (64, 64), (6 * number, 80, 120)).save(tmp_path / f"{number}.png")
    assert certify(tmp_path, "--n", "24", "--alpha", "0.3", "--quiet").status == 0
    assert 1 <= most["picture"] <= 12 and 1 <= most["certificate"] <= 12


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (("{image}", "--ray"), None),
        (("--ray", "{image}"), None),
        (("{image}", "--ray", "--n", "40"), None),
        (("--ray", "head:6379", "{image}"), "head:6379"),
        (("{image}", "--ray", "auto"), "auto"),
        (("{image}", "--ray=10.0.0.1:6379"), "10.0.0.1:6379"),
    ],
)
def test_ray_may_stand_by_itself_or_before_an_address(
    certify: Certify, samples: list[Path], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...],
    address: str | None,
) -> None:  # fmt: skip
    asked: list[Any] = []

    class Cluster:
        def __init__(self, bundle: Path, **named: Any) -> None:
            asked.append(named["address"])
            raise FvitError("no further")

    monkeypatch.setattr("fvit.cluster.driver.Cluster", Cluster)
    done = certify(*(word.format(image=samples[0]) for word in words))
    assert done.refusal == "error: no further"
    assert asked == [address]


# In processes of their own: what a system does to a command.


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_keeps_what_is_done_and_says_so(
    demo_bundle: Path, samples: list[Path], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    asked = (*samples, "--n", "64", "--out", tmp_path / "out", "--summary", tmp_path / "s.json")
    process = started("certify", demo_bundle, *asked)
    out = tmp_path / "out"
    file = out / NAME
    while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") > 1):
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(number)
    done = ended(process)
    assert (done.status, done.stderr) == (status, "interrupted\n")
    kept = records(out)
    assert 1 <= len(kept) < len(samples)
    assert samples[0].stem in done.stdout
    assert f"records and pictures are in {out}" in done.stdout
    assert len(list(out.glob("*.png"))) >= len(kept)
    assert not list(out.glob(".*.part")) and not (out / LOCK).exists()
    said = json.loads((tmp_path / "s.json").read_text())
    assert (said["records"], said["left"]) == (len(kept), len(samples) - len(kept))


def test_a_full_disk_leaves_nothing_half_done(demo_bundle: Path, samples: list[Path], tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = ended(started("certify", demo_bundle, samples[0], *FAST, "--out", tmp_path / "out", prepare=small))
    assert done.refusal == f"error: cannot write a picture to {tmp_path / 'out'}: File too large"
    assert records(tmp_path / "out") == []
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == [NAME]


def test_a_folder_that_is_read_only_is_refused(
    demo_bundle: Path, samples: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    done = ended(
        started("certify", demo_bundle, samples[0], *FAST, "--out", tmp_path / "out", prepare=obey_modes)
    )
    assert done.refusal == f"error: cannot write to {tmp_path / 'out'}: Permission denied"
    assert not list((tmp_path / "out").iterdir())
