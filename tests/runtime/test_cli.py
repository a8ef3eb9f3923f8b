import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FAST = ("--n", "64", "--n0", "8")


def certify(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from fvit.runtime.cli import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"}
    )


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "certificates.jsonl").read_text().splitlines()]


def test_rows_records_and_pictures(demo_bundle: Path, samples: list[Path], tmp_path: Path) -> None:
    done = certify(demo_bundle, *samples[:2], *FAST, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for sample in samples[:2]:
        assert sample.stem in done.stdout
    for record in records(tmp_path):
        assert list(record) == [
            "image", "sha256", "sigma", "alpha", "seed", "n0", "n", "copies_drawn",
            "class", "attention", "faithful", "engine", "bundle", "seconds",
        ]  # fmt: skip
        assert list(record["class"]) == [  # type: ignore[call-overload]
            "index", "label", "count", "p_lower", "radius_l2", "radius_linf", "abstained",
        ]  # fmt: skip
        assert list(record["attention"]) == [  # type: ignore[call-overload]
            "tokens", "grid", "k", "beta", "aggregate", "radius_l2", "abstained", "published_renyi_radius",
        ]  # fmt: skip
        assert list(record["faithful"]) == ["radius_l2", "order", "divergence"]  # type: ignore[call-overload]
    pictures = list(tmp_path.glob("*.png"))
    assert len(pictures) == 2
    assert all(Image.open(picture).width > 1000 for picture in pictures)


def test_a_second_run_skips_what_is_done_and_does_the_rest(
    demo_bundle: Path, samples: list[Path], tmp_path: Path
) -> None:
    certify(demo_bundle, samples[0], *FAST, "--out", tmp_path)
    before = (tmp_path / "certificates.jsonl").read_text()
    done = certify(demo_bundle, *samples[:2], *FAST, "--out", tmp_path)
    assert "1 of them were done before" in done.stdout
    after = (tmp_path / "certificates.jsonl").read_text()
    assert after.startswith(before)
    assert [record["image"] for record in records(tmp_path)] == [str(sample) for sample in samples[:2]]


def test_a_record_cut_off_by_a_crash_is_done_again(
    demo_bundle: Path, samples: list[Path], tmp_path: Path
) -> None:
    certify(demo_bundle, *samples[:2], *FAST, "--out", tmp_path)
    file = tmp_path / "certificates.jsonl"
    file.write_text(file.read_text()[:-40])
    done = certify(demo_bundle, *samples[:2], *FAST, "--out", tmp_path)
    assert done.returncode == 0
    assert [record["image"] for record in records(tmp_path)] == [str(sample) for sample in samples[:2]]


def test_ctrl_c_keeps_what_is_done(demo_bundle: Path, samples: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from fvit.runtime.cli import main; main()", str(demo_bundle)]
    command += [*map(str, samples), "--n", "400", "--n0", "8", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A suite that a shell runs in the background inherits that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    file = tmp_path / "certificates.jsonl"
    while process.poll() is None and not (file.exists() and file.read_text()):
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in stderr
    kept = records(tmp_path)
    assert 1 <= len(kept) < len(samples)
    assert samples[0].stem in stdout
    assert len(list(tmp_path.glob("*.png"))) >= len(kept)
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sigma", "100"), "choose σ between"),
        (("--sigma", "0"), "must be positive"),
        (("--top-k", "65"), "64 tokens"),
        (("--top-k", "0"), "64 tokens"),
        (("--top-k", "60", "--beta", "0.1"), "only 4 lie outside"),
        (("--beta", "0"), "not in (0, 1]"),
        (("--beta", "1.5"), "not in (0, 1]"),
        (("--alpha", "0"), "not in (0, 1)"),
        (("--n", "10"), "use n ≥ 17"),
        (("--n0", "0"), "n0 = 0"),
        (("--batch", "0"), "batch = 0"),
        (("--seed", "-1"), "seed = -1"),
        (("--device", "tpu"), "unknown device"),
    ],
)
def test_terms_that_cannot_hold_end_in_one_line_before_any_work(
    demo_bundle: Path, samples: list[Path], options: tuple[str, ...], message: str
) -> None:
    done = certify(demo_bundle, samples[0], *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_seventeen_copies_are_indeed_the_fewest(demo_bundle: Path, samples: list[Path]) -> None:
    assert certify(demo_bundle, samples[0], "--n", "17").returncode == 0
    assert certify(demo_bundle, samples[0], "--n", "16").returncode == 1


def test_bad_images_are_named_and_the_good_ones_done(
    demo_bundle: Path, samples: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a-text.png").write_text("no image")
    (folder / "b-truncated.png").write_bytes(samples[0].read_bytes()[:1000])
    shutil.copy(samples[0], folder / "c-good.png")
    Image.fromarray(np.zeros((50, 90), np.uint8)).save(folder / "d-grey-and-small.png")
    done = certify(demo_bundle, folder, *FAST, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "a-text.png is not an image" in done.stderr
    assert "b-truncated.png is a damaged image" in done.stderr
    assert "d-grey-and-small.png: resized from 90×50 to 64×64" in done.stderr
    assert "Traceback" not in done.stderr
    kept = [Path(str(record["image"])).name for record in records(tmp_path / "out")]
    assert kept == ["c-good.png", "d-grey-and-small.png"]


def test_empty_folders_missing_bundles_and_unwritable_outputs(
    demo_bundle: Path, samples: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    for arguments, message in (
        ((demo_bundle, tmp_path / "empty"), "holds no image"),
        ((tmp_path / "absent", samples[0]), "fvit-export demo"),
        ((demo_bundle, tmp_path / "absent.png"), "does not exist"),
        ((demo_bundle, samples[0], "--out", tmp_path / "file" / "out"), "cannot write"),
    ):
        done = certify(*arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_changed_bundle_is_refused(demo_bundle: Path, samples: list[Path], tmp_path: Path) -> None:
    spoiled = tmp_path / "bundle"
    shutil.copytree(demo_bundle, spoiled)
    data = bytearray((spoiled / "classifier.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (spoiled / "classifier.onnx").write_bytes(data)
    done = certify(spoiled, samples[0])
    assert done.returncode == 1
    assert "classifier.onnx was changed" in done.stderr


def test_several_sizes_share_the_copies_and_come_with_their_curves(
    demo_bundle: Path, samples: list[Path], tmp_path: Path
) -> None:
    done = certify(
        demo_bundle,
        samples[1],
        "--n",
        "100",
        "--n0",
        "20",
        "--top-k",
        "5",
        "--top-k",
        "10",
        "--out",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path)
    explanations: list[dict[str, object]] = record["explanations"]  # type: ignore[assignment]
    assert record["copies_drawn"] == 120
    assert [explanation["k"] for explanation in explanations] == [5, 10]
    assert all(len(str(e["radius_by_beta"])) > 2 for e in explanations)
    for explanation in explanations:
        curve: list[tuple[float, float]] = explanation["radius_by_beta"]  # type: ignore[assignment]
        betas, radii = zip(*curve, strict=True)
        assert list(betas) == sorted(betas, reverse=True)
        assert list(radii) == sorted(radii)  # a weaker claim holds at least as far
    assert {key: explanations[0][key] for key in record["attention"]} == record["attention"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("radius", ["0.01", "0.4"])
def test_a_decision_says_how_many_copies_it_took(
    demo_bundle: Path, samples: list[Path], tmp_path: Path, radius: str
) -> None:
    done = certify(
        demo_bundle,
        samples[1],
        "--n",
        "400",
        "--n0",
        "20",
        "--alpha",
        "0.01",
        "--radius",
        radius,
        "--out",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path)
    decision: dict[str, object] = record["decision"]  # type: ignore[assignment]
    assert list(decision) == ["radius", "class", "attention", "answer", "batch"]
    assert decision["answer"] in ("certified", "not certified", "undecided")
    assert str(decision["answer"]) in done.stdout
    assert decision["answer"] == "undecided" or int(str(record["copies_drawn"])) < 420


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--radius", "0"), "must be positive"),
        (("--radius", "0.9"), "use n ≥"),
        (("--radius", "50"), "raise σ or lower the radius"),
        (("--top-k", "5", "--top-k", "5"), "each explanation size once"),
    ],
)
def test_decisions_that_cannot_be_made_are_refused(
    demo_bundle: Path, samples: list[Path], options: tuple[str, ...], message: str
) -> None:
    done = certify(demo_bundle, samples[0], *options)
    assert done.returncode == 1
    assert message in done.stderr


def test_replay_reproduces_every_record_and_notices_a_changed_one(
    demo_bundle: Path, samples: list[Path], tmp_path: Path
) -> None:
    certify(demo_bundle, *samples[:2], *FAST, "--out", tmp_path)
    certify(demo_bundle, samples[1], *FAST, "--aggregate", "mean", "--n", "400", "--out", tmp_path)
    certify(demo_bundle, samples[1], *FAST, "--n", "200", "--radius", "0.1", "--out", tmp_path)
    file = tmp_path / "certificates.jsonl"
    done = certify("--replay", file, demo_bundle, *samples[:2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("identical") == len(records(tmp_path)) == 4
    changed = json.loads(file.read_text().splitlines()[0])
    changed["class"]["count"] += 1
    changed["class"]["radius_l2"] = 3.0
    changed["class"]["abstained"] = False
    file.write_text(json.dumps(changed) + "\n")
    done = certify("--replay", file, demo_bundle, *samples[:2])
    assert done.returncode == 1
    assert "identical" not in done.stdout
    assert "weaker here" in done.stdout


def test_a_replay_without_records_or_images_says_so(
    demo_bundle: Path, samples: list[Path], tmp_path: Path
) -> None:
    certify(demo_bundle, samples[0], *FAST, "--out", tmp_path)
    file = tmp_path / "certificates.jsonl"
    assert "image not given" in certify("--replay", file, demo_bundle, samples[1]).stdout
    file.write_text("{}\n")
    done = certify("--replay", file, demo_bundle, samples[0])
    assert done.returncode == 1
    assert "line 1 is no record" in done.stderr
    assert "cannot be read" in certify("--replay", tmp_path / "absent", demo_bundle, samples[0]).stderr
