import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from rich.console import Console
from torch import Tensor

import fvit
from fvit.demo.data import LABELS, compositions
from fvit.demo.models import load_classifier
from fvit.engines.opening import open_engine
from fvit.errors import FvitError
from fvit.export.bundles import export_bundle
from fvit.export.comparing import levels_of
from fvit.export.denoisers import load_diffusers
from fvit.export.distillation import StudentAsked, distill_bundle, train_student
from fvit.export.graphs import export_graph
from fvit.export.students import Shape, Student, shape_of
from fvit.export.training import PLAN, STATE, Settings
from fvit.runtime.bundle import open_bundle
from fvit.runtime.schedule import Schedule
from tests.commands import WAITS, here, largest_file, last_line
from tests.export.denoising import saved, small_unet
from tests.zygote import Run, Zygote

SHAPE = Shape(width=8, fold=4, lowest=0.12, highest=1.0)
QUIET = Console(quiet=True)


class Pixels:
    """Compositions that can be made to fail at a batch, as a process that is killed there."""

    def __init__(self, *, ends: int | None = None) -> None:
        self.pixels = torch.from_numpy(compositions(64, seed=1, split="train").images).permute(0, 3, 1, 2)
        self.left = ends

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, chosen: Tensor) -> Tensor:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return self.pixels[chosen]


def trained(work: Path, images: Pixels, *, steps: int = 30, seed: int = 0) -> tuple[Student, list[float]]:
    settings = Settings(rate=2e-3, batch=16, steps=steps, seed=seed, mixed_precision="no", checkpoint=0)
    return train_student(
        SHAPE, images, settings, size=(64, 64), output_size=(64, 64), work=work, console=QUIET
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 compositions as files, in two folders."""
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(compositions(72, seed=2, split="train").images):
        (folder / str(number % 2)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / str(number % 2) / f"{number}.png")
    return folder


def test_the_loss_falls_and_a_killed_training_goes_on_to_the_same_curve(tmp_path: Path) -> None:
    student, losses = trained(tmp_path / "whole", Pixels())
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    for steps in (1, 9, 10):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "broken", Pixels(ends=steps))
    resumed, again = trained(tmp_path / "broken", Pixels())
    assert again == losses
    for name, value in student.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


# Most of what the command imports, but for ONNX Runtime, which does not survive a fork.
MODULES = (
    "timm", "onnxscript", "accelerate", "diffusers.models.unets.unet_2d", "tests.export.every_step"
)  # fmt: skip


@pytest.fixture
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    started = Zygote("export", *MODULES, folder=tmp_path_factory.mktemp("streams"))
    yield started
    started.close()


def work_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.training")


def kill_when(happened: Callable[[], bool], run: Run) -> None:
    end = time.monotonic() + WAITS
    while not happened():
        assert run.pause(0.005) and time.monotonic() < end, run.stderr
    os.kill(run.process, signal.SIGKILL)
    assert run.end() == -signal.SIGKILL


def replaced(file: Path, times: int) -> Callable[[], bool]:
    """Whether a file has been seen to be made or replaced so often since."""
    seen: set[int] = set()

    def enough() -> bool:
        with suppress(FileNotFoundError):
            seen.add(file.stat().st_mtime_ns)
        return len(seen) > times

    return enough


def is_being_written(out: Path) -> bool:
    return any(out.parent.glob(f".{out.name}-*"))


def test_a_distillation_that_is_killed_at_any_point_goes_on_to_the_same_curve(
    zygote: Zygote, folder: Path, tmp_path: Path
) -> None:
    """One is killed twice as it trains; it and another, which was not, as they write their bundles. What is
    left of a bundle is in nobody's way."""
    chance = random.Random(0)
    broken, whole = (tmp_path / name / "b" for name in ("broken", "whole"))

    def start(out: Path) -> Run:
        return zygote.start(
            "distill", "demo", out, "--images", folder, "--size", "tiny", "--sigmas", "0.12:0.3",
            "--steps", "40", "--batch", "4", "--share", "0", "--held-out", "1", "--n", "24",
        )  # fmt: skip

    for _ in range(2):
        kill_when(replaced(work_of(broken) / STATE, chance.randint(1, 5)), start(broken))
        assert 0 < len(torch.load(work_of(broken) / STATE)["losses"]) < 40
    for out in (broken, whole):
        kill_when(partial(is_being_written, out), start(out))
    resumed = start(broken)
    assert (resumed.end(), resumed.stderr) == (0, "")
    found, wanted = (torch.load(work_of(out) / STATE) for out in (broken, whole))
    assert len(found["losses"]) == 40 and found["losses"] == wanted["losses"]
    for name, value in wanted["model"].items():
        assert torch.equal(found["model"][name], value)
    assert open_bundle(broken).manifest.denoiser == "fvit-student-24"
    assert sorted(file.name for file in work_of(broken).iterdir()) == [PLAN, STATE]


def test_another_training_in_the_same_folder_is_refused_by_what_differs(tmp_path: Path) -> None:
    trained(tmp_path, Pixels(), steps=1)
    with pytest.raises(FvitError, match="seed 0, not 1"):
        trained(tmp_path, Pixels(), steps=1, seed=1)
    with pytest.raises(FvitError, match="steps 1, not 2"):
        trained(tmp_path, Pixels(), steps=2)


def test_other_images_or_other_hours_are_another_training(
    demo_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "others")
    changed = next((tmp_path / "others" / "0").glob("*.png"))
    changed.rename(changed.with_name("another.png"))

    def distil(images: Path, **settings: Any) -> None:
        distill_bundle(
            demo_bundle, tmp_path / "b", images=images, console=QUIET,
            asked=StudentAsked(size="tiny", share=0.0, held_out=2, n=24),
            settings=Settings(rate=2e-3, batch=4, mixed_precision="no", **settings),
        )  # fmt: skip

    distil(folder, steps=1)
    with pytest.raises(FvitError, match=r"b\.training holds a training on images of other names or sizes: r"):
        distil(tmp_path / "others", steps=1)
    with pytest.raises(FvitError, match=r"with seed 0, not 1: "):
        distil(folder, steps=1, seed=1)
    with pytest.raises(FvitError, match=r"with length --steps, not --hours 0\.5: "):
        distil(folder, hours=0.5)


@pytest.mark.parametrize("name", ["rate", "hours"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_settings_that_are_no_numbers_are_refused(name: str, value: float) -> None:
    with pytest.raises(FvitError, match=f"{name} = .*: give a number above 0"):
        Settings(**{"rate": 1e-3, "batch": 8, name: value})  # type: ignore[arg-type]


def test_time_is_turned_into_steps_once(tmp_path: Path) -> None:
    settings = Settings(rate=2e-3, batch=4, hours=2 / 3600, mixed_precision="bf16")
    arguments = {"size": (64, 64), "output_size": (64, 64), "work": tmp_path, "console": QUIET}
    _, losses = train_student(SHAPE, Pixels(), settings, **arguments)  # type: ignore[arg-type]
    assert json.loads((tmp_path / PLAN).read_text())["steps"] == len(losses)
    assert train_student(SHAPE, Pixels(), settings, **arguments)[1] == losses  # type: ignore[arg-type]
    assert sorted(file.name for file in tmp_path.iterdir()) == [PLAN, STATE]


@pytest.mark.parametrize("output", [(64, 64), (48, 40)])
def test_an_exported_student_equals_torch_at_every_level(output: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = Student(SHAPE).resized((64, 64), output).eval()
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sigma = np.array([0.12, 0.25, 0.5, 1.0], np.float32)
    inputs = {
        "noisy": torch.rand(4, 3, 64, 64),
        "sigma": torch.tensor(sigma),
        "timestep": torch.tensor(SHAPE.schedule.timestep(sigma), dtype=torch.float32),
    }
    assert inputs["timestep"].tolist() == pytest.approx(
        (np.log(sigma / 0.12) / np.log(1 / 0.12)).tolist(), abs=1e-6
    )
    export_graph(student, inputs, outputs=("images",), graph=tmp_path / "s.onnx")
    engine = open_engine(tmp_path / "s.onnx", device="cpu")
    found = engine.run({name: value.numpy() for name, value in inputs.items()})["images"]
    assert found.shape == (4, 3, *output)
    for row in range(4):
        with torch.no_grad():
            expected = student(*(value[row : row + 1] for value in inputs.values())).numpy()
        assert np.abs(found[row] - expected).max() < 1e-5


def test_preconditioning_is_karras_and_others() -> None:
    """With a network that answers nothing: c_skip·x, the best linear guess of data of this spread."""
    student = Student(SHAPE)
    for parameter in student.network.last.parameters():
        torch.nn.init.zeros_(parameter)
    noisy, sigma = torch.rand(2, 3, 64, 64), torch.tensor([0.25, 1.0])
    skip = 0.25 / ((2 * sigma) ** 2 + 0.25)
    expected = skip[:, None, None, None] * (2 * noisy - 1)
    assert torch.allclose(student.guess(noisy, sigma, torch.rand(2)), expected, atol=1e-6)


def test_a_student_in_int8_takes_its_teachers_place(demo_bundle: Path, folder: Path, tmp_path: Path) -> None:
    asked = StudentAsked(size="tiny", sigmas=(0.12, 1.0), share=0.5, precision="int8", held_out=2, n=32)
    settings = Settings(rate=2e-3, batch=8, steps=10)
    console = Console(record=True, width=120, file=(tmp_path / "said").open("w"))
    distill_bundle(
        demo_bundle, tmp_path / "b", images=folder, asked=asked, settings=settings, console=console
    )
    before, after = open_bundle(demo_bundle), open_bundle(tmp_path / "b")
    assert after.manifest.teacher is not None
    assert (after.manifest.teacher.name, after.manifest.teacher.bundle) == (
        "fvit-demo-student",
        before.digest,
    )
    assert (after.manifest.precision, after.manifest.denoiser) == ("int8", "fvit-student-24")
    rows = [line.split("│")[1:4] for line in console.export_text().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["teacher", "fp32", "0.25"], ["teacher", "fp32", "0.5"],
        ["student", "int8", "0.25"], ["student", "int8", "0.5"],
    ]  # fmt: skip


def test_two_minutes_on_the_embedded_data_make_a_student_that_denoises(
    demo_bundle: Path, tmp_path: Path
) -> None:
    """The graph that is written takes three quarters of the noise at σ = 0.25 away; untrained, half."""
    for number, pixels in enumerate(compositions(1000, seed=3, split="train").images):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    asked = StudentAsked(size="tiny", share=0.0, held_out=4, n=32)
    settings = Settings(rate=2e-3, batch=16, hours=2 / 60)
    distill_bundle(
        demo_bundle, tmp_path / "b", images=tmp_path, asked=asked, settings=settings, console=QUIET
    )
    clean = compositions(20, seed=4, split="held-out").images.transpose(0, 3, 1, 2) / np.float32(255)
    noise = 0.25 * np.random.default_rng(0).standard_normal(clean.shape, np.float32)
    with fvit.load(tmp_path / "b") as vit:
        denoised = vit.pipeline.denoise(clean + noise, sigma=np.full(len(clean), 0.25, np.float32))
    assert np.square(denoised - clean).mean() < 0.25 * np.square(noise).mean()


def test_a_student_learns_from_a_teacher_of_any_family(folder: Path, tmp_path: Path) -> None:
    """A flow model, whose graph computes its time from σ; and σ beyond its schedule are no lesson."""
    unet = small_unet(sample_size=64)
    flow = load_diffusers(saved(tmp_path / "flow", unet, FlowMatchEulerDiscreteScheduler()))
    export_bundle(
        tmp_path / "teacher", classifier=load_classifier(), classifier_name="fvit-demo-vit", labels=LABELS,
        denoiser=flow, denoiser_name="flow",
    )  # fmt: skip
    teacher = open_bundle(tmp_path / "teacher").manifest
    assert teacher.prediction == "flow"
    asked = StudentAsked(size="tiny", sigmas=(0.12, 1.0), share=1.0, held_out=2, n=24)
    settings = Settings(rate=2e-3, batch=8, steps=2, mixed_precision="no")
    distill_bundle(
        tmp_path / "teacher", tmp_path / "b", images=folder, asked=asked, settings=settings, console=QUIET
    )
    student = open_bundle(tmp_path / "b").manifest
    assert student.teacher is not None
    assert (student.teacher.name, student.prediction) == ("flow", "sample")
    with pytest.raises(FvitError, match=r"the teacher knows σ from 0\.0005 to 499\.5, not from 0\.0001"):
        distill_bundle(
            tmp_path / "teacher", tmp_path / "c", images=folder, settings=settings, console=QUIET,
            asked=StudentAsked(sigmas=(1e-4, 1.0)),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("images", "asked", "message"),
    [
        ("absent", {}, "absent does not exist"),
        ("few", {}, "holds 1 images: training needs 64 at least"),
        ("many", {"size": "huge"}, "size 'huge' is unknown: use one of tiny, small, base"),
        ("many", {"sigmas": (1.0, 0.1)}, "is no range"),
        ("many", {"sigmas": (1e-9, 1.0)}, "is no range"),
        ("many", {"sigmas": (1e-4, 1.0)}, "the teacher knows σ from"),
        ("many", {"sigmas": (0.12, np.inf), "share": 0.0}, "is no range"),
        ("many", {"device": "cuda:99"}, "cuda:99 needs|pycuda|GPU"),
        ("many", {"device": "auto", "labels": "folders"}, "unknown device 'auto'"),
        ("many", {"precision": "fp16"}, "cannot become one in fp16"),
        ("many", {"n": 5}, "n = 5 copies cannot certify any positive radius"),
    ],
)
def test_what_cannot_be_distilled_is_said(
    images: str,
    asked: dict[str, Any],
    message: str,
    demo_bundle: Path,
    folder: Path,
    photo: Path,
    tmp_path: Path,
) -> None:
    places = {"absent": tmp_path / "absent", "few": photo.parent, "many": folder}
    with pytest.raises(FvitError, match=message):
        distill_bundle(
            demo_bundle, tmp_path / "b", images=places[images], asked=StudentAsked(**{"held_out": 4} | asked),
            settings=Settings(rate=1e-3, batch=8, steps=1), console=QUIET,
        )  # fmt: skip
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "b.training").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("demo", "what the embedded bundle is called"),
        ("", "has no name of its own"),
        ("photo.png", "exists and is no bundle"),
        ("bundle", "is the bundle that the new one is made from"),
        ("link", "is the bundle that the new one is made from"),
        ("other", "is a link: name the folder itself"),
    ],
)
def test_a_place_where_no_bundle_can_be_written_is_refused_before_the_training(
    place: str, message: str, demo_bundle: Path, folder: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    shutil.copytree(demo_bundle, "bundle")
    Path("link").symlink_to("bundle")
    shutil.copytree(demo_bundle, "another")
    Path("other").symlink_to("another")
    for command in ("distill", "tune"):
        done = here("export", command, "bundle", place, "--images", folder, "--hours", "1000")
        assert message in last_line(done)
    assert not list(photo.parent.glob("*.training"))


def test_images_that_cannot_be_read_are_named_before_anything_is_trained(
    demo_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "images")
    whole = sorted((tmp_path / "images").rglob("*.png"))
    (tmp_path / "images" / "cut.png").write_bytes(whole[0].read_bytes()[:400])
    with pytest.raises(FvitError, match=r"1 of \d+ images cannot be read; remove them: .*cut\.png"):
        distill_bundle(
            demo_bundle, tmp_path / "b", images=tmp_path / "images", asked=StudentAsked(held_out=1),
            settings=Settings(rate=1e-3, batch=8, steps=1), console=QUIET,
        )  # fmt: skip
    assert not (tmp_path / "b.training" / PLAN).exists()


def test_levels_that_are_compared_are_those_that_the_student_knows() -> None:
    assert levels_of(Schedule.between(0.12, 1.0)) == [0.25, 0.5]
    assert levels_of(Schedule.between(0.12, 0.25)) == [0.25]  # also where its root is rounded
    assert levels_of(Schedule.between(0.05, 0.2)) == pytest.approx([0.05, 0.2])


def test_arithmetic_that_the_machine_lacks_is_said(tmp_path: Path) -> None:
    settings = Settings(rate=1e-3, batch=8, steps=1, mixed_precision="fp12")
    with pytest.raises(FvitError, match="mixed precision 'fp12' cannot be used"):
        train_student(
            SHAPE, Pixels(), settings, size=(64, 64), output_size=(64, 64), work=tmp_path, console=QUIET
        )


def test_a_disk_that_is_full_while_training_is_one_line(
    demo_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    """No file may grow beyond 100 KB, which no checkpoint fits into."""
    with largest_file(100_000):
        done = here(
            "export", "distill", demo_bundle, tmp_path / "b", "--images", folder, "--size", "tiny",
            "--steps", "1", "--share", "0", "--held-out", "4",
        )  # fmt: skip
    assert "state.pt" in last_line(done)
    assert [file.name for file in (tmp_path / "b.training").iterdir()] == [PLAN]


def test_sides_that_cannot_be_folded_are_refused() -> None:
    with pytest.raises(FvitError, match="multiples of 8"):
        shape_of(size="base", image_size=(60, 64), sigmas=(0.12, 1.0))
    with pytest.raises(FvitError, match="multiples of 16"):
        shape_of(size="base", image_size=(136, 128), sigmas=(0.12, 1.0))
