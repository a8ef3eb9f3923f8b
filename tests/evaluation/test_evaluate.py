"""The run: what it comes to, and that nothing of it depends on when it is stopped."""

import dataclasses
import io
import json
import multiprocessing
import random
import shutil
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from fvit.errors import FvitError
from fvit.evaluation.adversarial import Adversary
from fvit.evaluation.evaluate import MOSAICS, Evaluation, radii_of
from fvit.evaluation.evaluate import NAME as TABLES
from fvit.evaluation.keeping import NAME as MEASURES
from fvit.evaluation.keeping import Asked, Kept, engine_of
from fvit.evaluation.layouts import find_data
from fvit.runtime.decoding import MAX_PIXELS
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.journal import NAME as RECORDS
from fvit.runtime.journal import Journal
from fvit.runtime.noise import noisy_copies, philox_key
from fvit.runtime.run import Told
from tests.evaluation.model import LABELS, Colours, image_of, of_colours

PERTURBED_N = 4
IMAGES = 12
TERMS = {"sigma": 0.25, "n": 60, "alpha": 0.01, "k": 4, "beta": 0.8}

Pixels = NDArray[np.uint8]


def write_data(place: Path, *, images: int = IMAGES) -> list[tuple[Pixels, Pixels, int]]:
    """As many images beside their masks, in turn of every class; pixels [H,W,3], mask [H,W] and label of
    each."""
    written = []
    for number in range(images):
        label = number % len(LABELS)
        pixels, mask = image_of(LABELS[label], seed=number)
        for kind, values in (("images", pixels), ("masks", mask)):
            folder = place / kind / LABELS[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / f"{number:03}.png")
        written.append((pixels, mask.astype(np.uint8), label))
    return written


def asked_of(
    vit: FaithfulViT, *, seed: int | None, perturbed_n: int = PERTURBED_N, attack_steps: int | None = None
) -> Asked:
    asked = {**TERMS, "perturbed_n": perturbed_n, "attack_steps": attack_steps, "seed": seed}
    engine = engine_of(vit.engine)
    return Asked(bundle=vit.bundle.digest, engine=engine, **asked)  # type: ignore[arg-type]


def evaluate(
    vit: FaithfulViT,
    data: Path,
    out: Path,
    *,
    seed: int | None = None,
    limit: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
    adversary: Adversary | None = None,
) -> dict[str, Any]:
    """Run and write it; gives what was written, and what was said under "said"."""
    said = io.StringIO()
    told = Told(Console(file=said), Console(file=said, width=1000), quiet=False)
    terms = vit.terms(**TERMS)  # type: ignore[arg-type]
    found = find_data(data, names=vit.bundle.manifest.labels)
    asked = asked_of(vit, seed=seed, attack_steps=None if adversary is None else 10)
    with Journal(out) as journal, Kept(out, asked) as kept:
        run = Evaluation(
            vit, found, terms, journal, kept, told, limit=limit, max_pixels=MAX_PIXELS, stopped=stopped,
            adversary=adversary,
        )  # fmt: skip
        run.run()
        run.write(run.tables())
    return json.loads((out / TABLES).read_text()) | {"said": said.getvalue()}


def picked(rows: list[dict[str, Any]], **wanted: str) -> dict[str, Any]:
    """The one row that has these."""
    (found,) = [row for row in rows if wanted.items() <= row.items()]
    return found


def values(figures: list[dict[str, Any]]) -> list[float]:
    return [figure["value"] for figure in figures]


# --- what it comes to, computed again from the model alone ---------------------------------------------


def curve_of(shown: Pixels, order: list[int], fill: tuple[int, ...]) -> list[Pixels]:
    """The image [H,W,3] without its first 1 to 9 tenths of 16 tokens of 4×4 pixels, filled with a colour."""
    without = []
    for count in (1, 3, 4, 6, 8, 9, 11, 12, 14):
        left = shown.copy()
        for token in order[:count]:
            row, column = 4 * (token // 4), 4 * (token % 4)
            left[row : row + 4, column : column + 4] = fill
        without.append(left)
    return without


def floats(shown: Pixels) -> NDArray[np.float32]:
    return shown.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)


def plain_class(shown: Pixels) -> int:
    return int(Colours().classify(floats(shown))[0][0].argmax())


def smoothed_class(vit: FaithfulViT, shown: Pixels, *, seed: int) -> int:
    picture = vit.read(shown)
    key = philox_key(picture.pixels_sha256, size=(16, 16), seed=seed)
    noisy = noisy_copies(picture.pixels, range(PERTURBED_N), sigma=TERMS["sigma"], key=key)
    classes = Colours()(noisy, sigma=np.full(PERTURBED_N, 0.25, np.float32))[0].argmax(axis=1)
    return int(np.bincount(classes, minlength=4).argmax())


def test_curves_are_what_the_model_says_of_images_without_their_tokens(
    colours: FaithfulViT, tmp_path: Path
) -> None:
    written = write_data(tmp_path / "data", images=6)
    found = evaluate(colours, tmp_path / "data", tmp_path / "out", seed=3)
    assert found["data"]["evaluated"] == found["data"]["labelled"] == found["data"]["masked"] == 6
    for order, sign in (("positive", -1), ("negative", 1)):
        plain, smoothed = [], []
        for shown, _, label in written:
            attribution = Colours().classify(floats(shown))[1][0].astype(np.float64)
            ranked = sorted(range(16), key=lambda token: (-attribution[token], token))[::-sign]
            fill = tuple(int(np.rint(shown[..., channel].mean())) for channel in range(3))
            without = curve_of(shown, ranked, fill)
            plain.append([plain_class(each) == label for each in without])
            smoothed.append([smoothed_class(colours, each, seed=3) == label for each in without])
        for model, right in (("plain", plain), ("smoothed", smoothed)):
            row = picked(found["curves"], explanation="plain", order=order, fill="mean", model=model)
            accuracy = np.mean(right, axis=0)
            assert values(row["accuracy"]["curve"])[1:] == pytest.approx(accuracy, abs=1e-6)
            assert row["accuracy"]["curve"][0]["value"] == 1
            heights = np.array([1.0, *accuracy])
            area = float(((heights[1:] + heights[:-1]) / 2).sum() / 10)
            assert row["accuracy"]["auc"]["value"] == pytest.approx(area, abs=1e-6)
            assert (min(accuracy) < 0.9) == (order == "positive")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an evaluation of all images has left what it came to."""
    place = tmp_path_factory.mktemp("evaluated")
    write_data(place / "data")
    with of_colours() as vit:
        evaluate(vit, place / "data", place / "out", seed=3)
    return place / "out"


@pytest.fixture
def found(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / TABLES).read_text()))


def test_the_most_relevant_first_takes_more_than_the_least_and_certified_in_more_than_out(
    found: dict[str, Any],
) -> None:
    for explanation in ("plain", "smoothed"):
        for model in ("plain", "smoothed"):
            first, last = (
                picked(found["curves"], explanation=explanation, order=order, fill="mean", model=model)
                for order in ("positive", "negative")
            )
            assert first["kept"]["auc"]["value"] + 0.1 < last["kept"]["auc"]["value"]
    shares = {
        tokens: picked(found["certified_deletion"], tokens=tokens, fill="mean", model="plain")["share"][
            "value"
        ]
        for tokens in ("in", "out", "random")
    }
    assert shares["in"] < shares["random"] < shares["out"]
    # Bright squares on dark grounds, and an explanation that is brightness.
    for row in found["segmentation"]:
        assert row["pixel_accuracy"]["value"] > 0.7 and row["mAP"]["value"] > 0.8
    at_zero = found["certified_localisation"][0]
    assert at_zero["certified_in"]["value"] > at_zero["any"]["value"] + 0.2


def test_the_map_and_what_is_certified_are_the_records(out: Path, found: dict[str, Any]) -> None:
    with Journal(out) as journal:
        records = list(journal)
    assert len(records) == IMAGES
    for row, certified, map_ in zip(
        found["certified_accuracy"], found["certified"], found["map"], strict=True
    ):
        radius = row["radius"]
        holds = [record.class_.radius_l2 >= radius and not record.class_.abstained for record in records]
        attention = [
            record.attention.radius_l2 >= radius and not record.attention.abstained for record in records
        ]
        assert certified["class"]["value"] == row["class"]["value"] == pytest.approx(np.mean(holds), abs=1e-6)
        assert row["attention"]["value"] == pytest.approx(np.mean(attention), abs=1e-6)
        inside = np.mean([(record.attention.map(radius) > 0).mean() for record in records])
        assert map_["in"]["value"] == pytest.approx(inside, abs=1e-6)
    assert found["certified"][0]["class"]["value"] == 1 and found["certified"][-1]["class"]["value"] == 0


def test_radii_end_where_no_copies_could_certify_more(colours: FaithfulViT) -> None:
    terms = colours.terms(n=1000)
    radii = radii_of(terms)
    assert radii[:4] == [0, 0.025, 0.05, 0.075]
    best = colours.certify(np.zeros((16, 16, 3), np.uint8), n=1000, k=4, seed=0).class_
    assert best.counts == {"3": 1000}
    assert radii[-2] <= best.radius_l2 < radii[-1]


def test_mosaics_are_of_four_classes_that_were_seen_rightly(out: Path, found: dict[str, Any]) -> None:
    with Journal(out / MOSAICS) as journal:
        records = list(journal)
    assert len(records) == IMAGES // 4
    for record in records:
        assert record.image.startswith("mosaic of ")
        assert sorted(Path(part).parent.name for part in record.image.split(", ")) == sorted(LABELS)
    game = found["mosaics"]
    assert game["explained"]["smoothed"]["images"] == IMAGES // 4
    # Squares of 4×4 pixels are too dim for the model: it sees "dark", and explains the darkest quarters.
    assert {record.class_.label for record in records} == {"dark"}
    for name in ("plain", "smoothed"):
        assert game["explained"][name]["value"] == 1
        assert 0 < game["in_its_quarter"][name]["value"] < 1


def test_an_explanation_of_no_class_has_no_mosaics(colours: FaithfulViT, tmp_path: Path) -> None:
    write_data(tmp_path / "data", images=4)
    manifest = colours.bundle.manifest.model_copy(update={"explanation": "attention", "explained": None})
    colours.bundle = dataclasses.replace(colours.bundle, manifest=manifest)
    found = evaluate(colours, tmp_path / "data", tmp_path / "out", seed=3)
    assert "mosaics" not in found and not (tmp_path / "out" / MOSAICS).exists()


def test_a_bundle_that_explains_one_class_is_asked_for_that_class(
    colours: FaithfulViT, tmp_path: Path
) -> None:
    """In its mosaics, and by how much the model gives it where tokens are removed."""
    write_data(tmp_path / "data", images=4)
    manifest = colours.bundle.manifest.model_copy(update={"explained": LABELS.index("green")})
    colours.bundle = dataclasses.replace(colours.bundle, manifest=manifest)
    found = evaluate(colours, tmp_path / "data", tmp_path / "out", seed=3)
    assert found["explained"] == "green"
    assert found["mosaics"]["explained"]["smoothed"] == {
        "value": 1, "low": 1, "high": 1, "images": 1,
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out" / MEASURES).read_bytes().splitlines()[1:]]
    for line in lines:
        green = LABELS[line["plain"]["index"]] == "green"
        assert (line["plain"]["share"] > 0.5) == (line["smoothed"]["share"] > 0.5) == green


# --- what is left out, and said ------------------------------------------------------------------------


def test_what_cannot_be_read_is_said_and_the_rest_is_done(colours: FaithfulViT, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_data(data, images=4)
    shutil.copy(data / "images" / "red" / "000.png", data / "images" / "red" / "again.png")
    shutil.copy(data / "masks" / "red" / "000.png", data / "masks" / "red" / "again.png")
    (data / "images" / "green" / "001.png").write_text("no image")
    Image.new("L", (8, 8)).save(data / "masks" / "blue" / "002.png")
    Image.fromarray(np.full((16, 16), 255, np.uint8) - np.eye(16, dtype=np.uint8)).save(
        data / "masks" / "dark" / "003.png"
    )
    found = evaluate(colours, data, tmp_path / "out", seed=3)
    said = found["said"]
    assert "001.png is not an image" in said
    assert "002.png is a mask of 8×8 pixels" in said
    assert "has the pixels of" in said and "is done once" in said
    counted = {name: found["data"][name] for name in ("listed", "evaluated", "failed", "repeated")}
    assert counted == {"listed": 5, "evaluated": 2, "failed": 2, "repeated": 1}


def test_an_image_that_is_listed_twice_counts_once(colours: FaithfulViT, tmp_path: Path) -> None:
    write_data(tmp_path / "data", images=2)
    red, green = (f"data/images/{label}/{number:03}.png,{label}\n" for number, label in enumerate(LABELS[:2]))
    (tmp_path / "list.csv").write_text(f"file,label\n{red}{green}{red}")
    found = evaluate(colours, tmp_path / "list.csv", tmp_path / "out", seed=3)
    assert "000.png is there twice, and is done once" in found["said"]
    assert (found["data"]["evaluated"], found["data"]["repeated"]) == (2, 1)


def test_a_limit_takes_a_part_that_is_drawn_once_for_all(colours: FaithfulViT, tmp_path: Path) -> None:
    """A larger one takes the same images and more, and computes only these."""
    write_data(tmp_path / "data")
    evaluate(colours, tmp_path / "data", tmp_path / "out", limit=3)
    first = (tmp_path / "out" / MEASURES).read_bytes()
    found = evaluate(colours, tmp_path / "data", tmp_path / "out", limit=5)
    assert found["data"]["listed"] == IMAGES and found["data"]["chosen"] == found["data"]["evaluated"] == 5
    assert (tmp_path / "out" / MEASURES).read_bytes().startswith(first)
    assert len((tmp_path / "out" / MEASURES).read_bytes().splitlines()) == 1 + 5
    names = [json.loads(line)["image"] for line in (tmp_path / "out" / RECORDS).read_bytes().splitlines()]
    assert names != sorted(names)


def test_a_folder_that_was_begun_otherwise_is_refused(colours: FaithfulViT, tmp_path: Path) -> None:
    write_data(tmp_path / "data", images=1)
    evaluate(colours, tmp_path / "data", tmp_path / "out", seed=3)
    with pytest.raises(FvitError, match="holds an evaluation with seed = 3, not 4: choose another --out"):
        evaluate(colours, tmp_path / "data", tmp_path / "out", seed=4)


def test_no_two_engines_make_one_evaluation(colours: FaithfulViT, tmp_path: Path) -> None:
    """Neither what is gone on with, nor records that fvit-certify left; another GPU is the same engine."""
    ((shown, _, _),) = write_data(tmp_path / "data", images=1)
    with Journal(tmp_path / "certified") as journal:
        journal.append(colours.certify(shown, **TERMS, seed=99).to_dict())  # type: ignore[arg-type]
    evaluate(colours, tmp_path / "data", tmp_path / "out")
    colours.engine = colours.engine | {"name": "openvino"}
    with pytest.raises(FvitError, match=r"with engine = numpy on .*, not openvino on .*: choose another"):
        evaluate(colours, tmp_path / "data", tmp_path / "out")
    with pytest.raises(FvitError, match=r"certificates\.jsonl holds a record of .* by numpy on .*, and this"):
        evaluate(colours, tmp_path / "data", tmp_path / "certified")
    one, other = ({"name": "a", "device": f"cuda:{number}", "precision": "fp16"} for number in (0, 1))
    assert engine_of(one) == engine_of(other) == "a on cuda in fp16"


def test_records_that_are_there_are_not_made_again(colours: FaithfulViT, tmp_path: Path) -> None:
    """Of fvit-certify on the same terms: the same claim at another seed would be no new evidence."""
    ((shown, _, _),) = write_data(tmp_path / "data", images=1)
    certificate = colours.certify(shown, **TERMS, seed=99)  # type: ignore[arg-type]
    with Journal(tmp_path / "out") as journal:
        journal.append(certificate.to_dict())
    evaluate(colours, tmp_path / "data", tmp_path / "out")
    assert len((tmp_path / "out" / RECORDS).read_bytes().splitlines()) == 1
    assert json.loads((tmp_path / "out" / MEASURES).read_bytes().splitlines()[1])["seed"] == 99


# --- stopping ------------------------------------------------------------------------------------------


def test_a_stop_is_heard_where_everything_is_done_already(tmp_path: Path) -> None:
    write_data(tmp_path / "data", images=2)
    with of_colours() as vit:
        evaluate(vit, tmp_path / "data", tmp_path / "out", seed=3)
        with pytest.raises(CancelledError):
            evaluate(vit, tmp_path / "data", tmp_path / "out", seed=3, stopped=lambda: True)


def run_once(data: Path, out: Path) -> None:
    """In a process of its own."""
    with of_colours() as vit:
        evaluate(vit, data, out)


def begun(out: Path, *, attack_steps: int | None = None) -> Path:
    """A folder in which an evaluation has begun, always with the same secret."""
    out.mkdir()
    with of_colours() as vit:
        asked = asked_of(vit, seed=None, attack_steps=attack_steps).model_copy(update={"secret": "5" * 64})
    (out / MEASURES).write_text(asked.model_dump_json(exclude_none=True) + "\n")
    return out


def lines(file: Path) -> list[str]:
    """Of a journal, without the time that each took, whatever the order."""
    return sorted(
        json.dumps({name: value for name, value in json.loads(line).items() if name != "seconds"})
        for line in file.read_bytes().splitlines()
    )


def test_killed_at_twenty_random_points_it_comes_to_the_same_to_the_bit(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_data(data)
    reference = begun(tmp_path / "reference")
    run_once(data, reference)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.evaluation.test_evaluate"])
    draw = random.Random(0)
    killed = folders = 0
    while killed < 20:
        out = begun(tmp_path / f"out-{folders}")
        folders += 1
        done = False
        while not done:
            process = context.Process(target=run_once, args=(data, out))
            process.start()
            process.join(timeout=None if killed >= 20 else draw.uniform(0.1, 0.6))
            if process.is_alive():
                process.kill()
                process.join()
                killed += 1
            else:
                assert process.exitcode == 0
                done = True
        assert (out / TABLES).read_bytes() == (reference / TABLES).read_bytes()
        for name in (MEASURES, RECORDS, f"{MOSAICS}/{RECORDS}"):
            assert lines(out / name) == lines(reference / name)
        thumbnails = [
            sorted(file.name for file in (place / "thumbnails").iterdir()) for place in (out, reference)
        ]
        assert thumbnails[0] == thumbnails[1] and len(thumbnails[0]) == 2 * IMAGES
