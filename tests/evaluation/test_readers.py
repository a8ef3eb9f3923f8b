"""Data sets of every layout, written as their publishers write them."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fvit.errors import FvitError
from fvit.evaluation.data import Data, Sample
from fvit.evaluation.layouts import find_data
from fvit.evaluation.readers.outlines import filled_polygon, filled_runs, runs_of_text
from fvit.runtime.masks import BACKGROUND, OBJECT, VOID
from tests.fuzz.trying import tried

NAMES = ("cat", "dog", "n02084071")


def image(file: Path, *, size: tuple[int, int] = (4, 6), value: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file)
    return file


def mask(file: Path, values: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(file)
    return file


def found(place: Path) -> Data:
    return find_data(place, names=NAMES)


def mask_of(sample: Sample, shape: tuple[int, int] = (4, 6)) -> NDArray[np.int8]:
    assert sample.mask is not None
    return sample.mask(shape)


def test_class_folders(tmp_path: Path) -> None:
    image(tmp_path / "dog" / "1.png")
    image(tmp_path / "cat" / "2.png")
    image(tmp_path / "cat" / "more" / "3.png").rename(tmp_path / "cat" / "3.png")
    data = found(tmp_path)
    assert data.layout == "class folders"
    assert [(Path(each.name).name, each.label, each.mask) for each in data.samples] == [
        ("2.png", 0, None), ("3.png", 0, None), ("1.png", 1, None),
    ]  # fmt: skip
    assert data.samples[0].image() == data.samples[0].name == str(tmp_path / "cat" / "2.png")


def test_a_folder_of_images_has_no_labels(tmp_path: Path) -> None:
    image(tmp_path / "1.png")
    assert [each.label for each in found(tmp_path).samples] == [None]


def test_a_folder_that_is_no_class_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "horse" / "1.png")
    with pytest.raises(FvitError, match="folder 'horse' is no class of this bundle"):
        found(tmp_path)


def test_a_csv(tmp_path: Path) -> None:
    image(tmp_path / "a" / "1.png")
    image(tmp_path / "2.png")
    mask(tmp_path / "masks" / "one.png", [[0, 0, 9, 9, 255, 0]] * 4)
    table = tmp_path / "set.csv"
    table.write_text("file,label,mask\na/1.png,dog,masks/one.png\n2.png,0,\n")
    data = found(table)
    assert data.layout == "CSV"
    assert [each.label for each in data.samples] == [1, 0]
    assert data.samples[0].image() == str(tmp_path / "a" / "1.png")
    assert mask_of(data.samples[0]).tolist() == [[0, 0, 1, 1, -1, 0]] * 4
    assert data.samples[1].mask is None


def test_a_csv_need_not_know_labels(tmp_path: Path) -> None:
    table = tmp_path / "set.csv"
    table.write_text("file\n1.png\n")
    assert [each.label for each in found(table).samples] == [None]
    for text, said in (("image\n1.png\n", "has no column file"), ("file\n", "names no image")):
        table.write_text(text)
        with pytest.raises(FvitError, match=said):
            found(table)


def test_images_beside_their_masks(tmp_path: Path) -> None:
    for name, kind in (("cat/1.jpg", "png"), ("dog/2.png", "bmp")):
        image(tmp_path / "images" / name)
        mask((tmp_path / "masks" / name).with_suffix(f".{kind}"), [[0, 255, 0, 0, 0, 0]] * 4)
    data = found(tmp_path)
    assert data.layout == "images and masks"
    assert [each.label for each in data.samples] == [0, 1]
    for each in data.samples:
        assert mask_of(each).tolist() == [[0, 1, 0, 0, 0, 0]] * 4
    (tmp_path / "masks" / "dog" / "2.bmp").unlink()
    with pytest.raises(FvitError, match=r"2\.png has no mask: make it .*masks/dog/2\.png"):
        found(tmp_path)


def test_images_beside_their_masks_need_no_classes(tmp_path: Path) -> None:
    image(tmp_path / "images" / "1.png")
    mask(tmp_path / "masks" / "1.png", [[0] * 6] * 4)
    assert [each.label for each in found(tmp_path).samples] == [None]


# --- ImageNet-Segmentation --------------------------------------------------------------------------


def matlab(
    file: Path, images: list[NDArray[np.uint8]], masks: list[NDArray[np.uint8]], ids: list[str]
) -> Path:
    """As MATLAB 7.3 stores a struct of cells: references to arrays whose axes are reversed, characters as
    16-bit numbers, behind a block of 512 bytes of its own."""
    with h5py.File(file, "w", userblock_size=512) as opened:
        kept = opened.create_group("#refs#")
        count = 0

        def refer(values: Any) -> h5py.Reference:
            nonlocal count
            count += 1
            return kept.create_dataset(str(count), data=values).ref

        def cells(values: list[Any]) -> NDArray[Any]:
            return np.array([[refer(value)] for value in values], dtype=h5py.ref_dtype)

        value = opened.create_group("value")
        value["img"] = cells([each.T for each in images])
        value["gt"] = cells([cells([each.T]) for each in masks])
        value["id"] = cells([np.array([[ord(letter)] for letter in each], np.uint16) for each in ids])
    return file


def test_imagenet_segmentation(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (4, 6, 3), np.uint8), draw.integers(0, 256, (5, 3), np.uint8)]
    masks = [(draw.random(each.shape[:2]) < 0.5).astype(np.uint8) for each in images]
    file = matlab(tmp_path / "gtsegs_ijcv.mat", images, masks, ["n02084071_12", "n02084071_3"])
    data = found(file)
    assert data.layout == "ImageNet-Segmentation"
    assert [each.name for each in data.samples] == [f"{file}#0", f"{file}#1"]
    assert [each.label for each in data.samples] == [2, 2]
    assert np.array_equal(np.asarray(data.samples[0].image()), images[0])
    assert np.array_equal(
        np.asarray(data.samples[1].image()), np.stack([images[1]] * 3, axis=2)
    )  # a grey one
    for each, wanted in zip(data.samples, masks, strict=True):
        assert np.array_equal(mask_of(each, wanted.shape), wanted)
    with pytest.raises(FvitError, match="is a mask of 6×4 pixels, and its image"):
        mask_of(data.samples[0], (6, 4))


def test_synsets_that_are_no_classes_label_nothing(tmp_path: Path) -> None:
    one = [np.zeros((2, 2, 3), np.uint8)], [np.zeros((2, 2), np.uint8)]
    data = found(matlab(tmp_path / "a.mat", *one, ["n01440764_1"]))
    assert [each.label for each in data.samples] == [None]


def test_what_is_no_mat_of_that_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b" " * 200)
    with h5py.File(tmp_path / "b.mat", "w") as opened:
        opened["other"] = np.zeros(3)
    with h5py.File(tmp_path / "c.mat", "w") as opened:
        opened["value/img"] = np.zeros((1, 1))
        opened["value/gt"] = np.zeros((1, 1))
    for name in ("a", "b"):
        with pytest.raises(FvitError, match="is not laid out as ImageNet-Segmentation's"):
            found(tmp_path / f"{name}.mat")
    with pytest.raises(FvitError, match="is not laid out as ImageNet-Segmentation's"):
        found(tmp_path / "c.mat").samples[0].image()


# --- COCO -------------------------------------------------------------------------------------------

OF_COCO: dict[str, Any] = {
    "info": {"year": 2017},
    "licenses": [],
    "images": [
        {"id": 7, "file_name": "000000000007.jpg", "height": 4, "width": 6, "coco_url": "…"},
        {"id": 9, "file_name": "000000000009.jpg", "height": 4, "width": 6},
        {"id": 11, "file_name": "000000000011.jpg", "height": 4, "width": 6},
    ],
    "categories": [
        {"id": 17, "name": "cat", "supercategory": "animal"},
        {"id": 18, "name": "dog", "supercategory": "animal"},
        {"id": 19, "name": "horse", "supercategory": "animal"},
    ],
    "annotations": [
        {
            "id": 1, "image_id": 7, "category_id": 18, "iscrowd": 0, "area": 4.0, "bbox": [1, 1, 2, 2],
            "segmentation": [[1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]],
        },
        {
            "id": 2, "image_id": 7, "category_id": 18, "iscrowd": 1, "area": 8.0, "bbox": [2, 0, 2, 4],
            "segmentation": {"counts": [8, 8, 8], "size": [4, 6]},
        },
        {
            "id": 3, "image_id": 9, "category_id": 17, "iscrowd": 0,
            "segmentation": [[0, 0, 6, 0, 0, 4], [5, 3, 6, 3, 6, 4, 5, 4]],
        },
        {"id": 4, "image_id": 9, "category_id": 18, "iscrowd": 0, "segmentation": [[0, 0, 1, 0, 1, 1]]},
    ],
}  # fmt: skip


def coco(place: Path, content: dict[str, Any] = OF_COCO) -> Path:
    for each in content["images"]:
        image(place / "val2017" / each["file_name"])
    file = place / "annotations" / "instances_val2017.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def test_coco(tmp_path: Path) -> None:
    file = coco(tmp_path)
    for place in (tmp_path, file):
        data = found(place)
        assert data.layout == "COCO"
        assert [Path(each.name).name for each in data.samples] == [f"{each:012}.jpg" for each in (7, 9, 11)]
        # All of the first one's objects are dogs; the second has two categories, the third no object.
        assert [each.label for each in data.samples] == [1, None, None]
    # A crowd in columns 2 and 3, which is void but where an object is known.
    V = VOID
    assert mask_of(data.samples[0]).tolist() == [
        [0, 0, V, V, 0, 0],
        [0, 1, 1, V, 0, 0],
        [0, 1, 1, V, 0, 0],
        [0, 0, V, V, 0, 0],
    ]
    # A triangle: the centre of column c lies inside where (c + ½)/6 + (r + ½)/4 < 1; and a corner pixel.
    triangle = [[(c + 0.5) / 6 + (r + 0.5) / 4 < 1 for c in range(6)] for r in range(4)]
    triangle[3][5] = True
    assert mask_of(data.samples[1]).tolist() == np.array(triangle, int).tolist()
    assert data.samples[2].mask is None


def test_runs_that_coco_packs_into_text(tmp_path: Path) -> None:
    """As pycocotools 2.0.11 encodes the mask below."""
    drawn = np.zeros((9, 12), np.uint8)
    drawn[2:7, 3:9] = 1
    drawn[4, 5] = 0
    drawn[8, 11] = 1
    text = "m05400MM0330000h0L"
    content = json.loads(json.dumps(OF_COCO))
    content["images"] = [{"id": 7, "file_name": "1.jpg", "height": 9, "width": 12}]
    content["annotations"] = [
        {"image_id": 7, "category_id": 17, "segmentation": {"counts": text, "size": [9, 12]}}
    ]
    (sample,) = found(coco(tmp_path, content)).samples
    assert np.array_equal(mask_of(sample, (9, 12)), drawn)


def packed(runs: list[int]) -> str:
    """Run lengths as COCO's text: the other way round."""
    text = ""
    for place, run in enumerate(runs):
        left = run - (runs[place - 2] if place > 2 else 0)
        while True:
            bits, left = left & 31, left >> 5
            last = left == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if last else 32))
            if last:
                break
    return text


@tried(60)
@given(st.lists(st.integers(0, 10**6), max_size=20))
def test_packed_runs_come_out_as_they_went_in(runs: list[int]) -> None:
    assert runs_of_text(packed(runs)) == runs


@tried(60)
@given(st.text(max_size=30), st.integers(1, 8), st.integers(1, 8))
def test_any_text_is_a_mask_or_refused(text: str, rows: int, columns: int) -> None:
    try:
        assert filled_runs(runs_of_text(text), (rows, columns)).shape == (rows, columns)
    except ValueError as error:
        assert str(error)


CORNERS = st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 2), min_size=3, max_size=8)


@tried(60)
@given(CORNERS, st.integers(1, 6), st.integers(1, 6))
def test_any_polygon_has_the_pixels_that_it_surrounds_an_odd_number_of_times(
    corners: list[tuple[float, float]], rows: int, columns: int
) -> None:
    """Counted for each pixel: the edges that a ray from its centre to the left meets."""
    drawn = filled_polygon(np.array(corners), (rows, columns))
    for row in range(rows):
        for column in range(columns):
            x, y, met = column + 0.5, row + 0.5, 0
            for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
                if (y0 <= y) != (y1 <= y):
                    met += x0 + (y - y0) / (y1 - y0) * (x1 - x0) < x
            assert drawn[row, column] == met % 2


def test_where_polygons_overlap_is_inside_and_a_hole_is_not(tmp_path: Path) -> None:
    """Polygons of an object are joined; one that runs around its own hole leaves it out."""
    content = json.loads(json.dumps(OF_COCO))
    content["images"] = content["images"][:1]
    ring = [0, 0, 6, 0, 6, 4, 0, 4, 0, 0, 2, 1, 2, 3, 4, 3, 4, 1, 2, 1]
    content["annotations"] = [{"image_id": 7, "category_id": 17, "segmentation": [ring]}]
    (sample,) = found(coco(tmp_path, content)).samples
    hole = np.ones((4, 6), int)
    hole[1:3, 2:4] = 0
    assert mask_of(sample).tolist() == hole.tolist()
    content["annotations"][0]["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4], [2, 0, 6, 0, 6, 4, 2, 4]]
    (sample,) = found(coco(tmp_path, content)).samples
    assert (mask_of(sample) == OBJECT).all()


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ({"counts": [8, 8], "size": [4, 6]}, "its runs are not of 24 pixels"),
        ({"counts": [30, -6], "size": [4, 6]}, "its runs are not of 24 pixels"),
        ({"counts": "!!", "size": [4, 6]}, "its counts are no run lengths"),
        ({"counts": "o", "size": [4, 6]}, "its counts end within a number"),
        ({"counts": "oooooooooooooooooooooo0", "size": [4, 6]}, "its counts are no run lengths"),
        ({"counts": [24], "size": [6, 4]}, "it is of 4×6 pixels"),
        ([[0, 0, 1, 1, 2, 2, 3]], "a corner lacks a coordinate"),
    ],
)
def test_annotations_that_cannot_be_drawn(tmp_path: Path, segmentation: Any, said: str) -> None:
    content = json.loads(json.dumps(OF_COCO))
    content["annotations"][0]["segmentation"] = segmentation
    with pytest.raises(FvitError, match=said):
        mask_of(found(coco(tmp_path, content)).samples[0])


def test_what_is_no_coco_is_refused(tmp_path: Path) -> None:
    file = coco(tmp_path)
    content = json.loads(file.read_text())
    (tmp_path / "val2017" / "000000000011.jpg").unlink()
    with pytest.raises(FvitError, match=r"names 000000000011\.jpg, which is not in .*val2017"):
        found(tmp_path)
    for wrong, said in (
        ({**content, "images": [{"id": 1}]}, r"images\.0\.file_name: Field required"),
        (
            {**content, "annotations": [{**content["annotations"][0], "segmentation": [[0, 1e300] * 3]}]},
            "segmentation",
        ),
        ({**content, "images": []}, "names no image"),
        ([], "no instances file"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(FvitError, match=said):
            found(tmp_path)
    file.write_text("{")
    with pytest.raises(FvitError, match="cannot be read as JSON"):
        found(file)
    file.rename(file.with_name("instances_test.json"))
    with pytest.raises(FvitError, match="0 files annotations/instances_"):
        found(tmp_path)


# --- Cityscapes -------------------------------------------------------------------------------------


def test_cityscapes(tmp_path: Path) -> None:
    for split, city in (("val", "ulm"), ("train", "bonn")):
        stem = f"{city}_000000_000019"
        image(tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", size=(1, 8))
        # unlabelled, ground, road, sky, person, car, bicycle, and what lies beyond.
        ids = [[0, 6, 7, 23, 24, 26, 33, 34]]
        mask(tmp_path / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", ids)
        mask(tmp_path / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png", ids)
    data = found(tmp_path)
    assert data.layout == "Cityscapes" and len(data.samples) == 2
    for each in data.samples:
        assert each.label is None
        assert mask_of(each, (1, 8)).tolist() == [[VOID, VOID, 0, 0, 1, 1, 1, 0]]
    (one,) = found(tmp_path / "leftImg8bit" / "val").samples
    assert Path(one.name).name == "ulm_000000_000019_leftImg8bit.png"
    assert mask_of(one, (1, 8))[0, 4] == OBJECT and mask_of(one, (1, 8))[0, 2] == BACKGROUND
    (tmp_path / "gtFine" / "val" / "ulm" / "ulm_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(FvitError, match="has no mask"):
        found(tmp_path)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    for place, said in ((tmp_path / "a.txt", "is no data set"), (tmp_path / "absent", "does not exist")):
        with pytest.raises(FvitError, match=said):
            found(place)
    with pytest.raises(FvitError, match="holds no image"):
        found(tmp_path)
