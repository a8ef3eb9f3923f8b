import tracemalloc
from pathlib import Path

import pytest

from fvit.errors import FvitError
from fvit.runtime.labels import labels_of

NAMES = ("cat", "dog", "crane", "crane", "7")


def written(folder: Path, text: str) -> str:
    file = folder / "labels.csv"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_a_class_folder_is_called_by_its_class_or_by_its_index(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("val/dog/1.png", "cat/2.png", "0/3.png", "7/4.png", "3/5.png")]
    assert list(labels_of(files, "folders", names=NAMES)) == [1, 0, 0, 4, 3]


def test_the_folder_that_a_relative_path_lies_in_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dog").mkdir()
    monkeypatch.chdir(tmp_path / "dog")
    assert list(labels_of(["a.png", "./b.png"], "folders", names=NAMES)) == [1, 1]


def test_as_many_folders_as_classes_stand_for_them_in_the_order_of_their_names() -> None:
    """As ImageNet's 1,000 folders are called by synsets, which bundles do not know."""
    files = [f"val/n{number:04d}/{image}.jpg" for number in (30, 10, 50, 20, 40) for image in "ab"]
    assert list(labels_of(files, "folders", names=NAMES)) == [2, 2, 0, 0, 4, 4, 1, 1, 3, 3]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["wolf/a.png"],
            r"folder 'wolf' is no class of this bundle \(cat, dog, crane, …\).*all 5.*\(1 are there",
        ),
        (["5/a.png"], "folder '5' is no class of this bundle.*no index below 5"),
        (["crane/a.png"], "several classes of this bundle are called 'crane'"),
    ],
)
def test_a_folder_that_stands_for_no_class_is_named(files: list[str], said: str) -> None:
    with pytest.raises(FvitError, match=said):
        labels_of(files, "folders", names=NAMES)


def test_a_csv_names_files_by_path_from_its_folder_or_bare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\ufefflabel,note,file\ndog,x,bare.png\n cat ,,sub/../sub/own.png\n4,,/data/absolute.png\n"
    csv = written(tmp_path, text + '"dog",,"com,ma.png"\n')
    monkeypatch.chdir(tmp_path)
    files = ["anywhere/bare.png", str(tmp_path / "sub" / "own.png"), "sub/own.png", "/data/absolute.png"]
    assert list(labels_of([*files, "com,ma.png"], csv, names=NAMES)) == [1, 0, 0, 4, 1]


def test_a_path_goes_before_a_bare_name(tmp_path: Path) -> None:
    csv = written(tmp_path, "file,label\na.png,cat\nsub/a.png,dog\n")
    files = [str(tmp_path / "sub" / "a.png"), str(tmp_path / "a.png")]
    assert list(labels_of(files, csv, names=NAMES)) == [1, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\nb.png,cat\n", r"a\.png has no label in"),
        ("file,label\na.png,wolf\n", "label 'wolf' in .* is no class of this bundle"),
        ("file,label\na.png,crane\n", "several classes of this bundle are called 'crane'"),
        ("file,label\na.png,cat\na.png,dog\n", r"line 3 gives a\.png a second label"),
        ("file,label\na.png\n", "line 2 lacks a file or a label"),
        ("file,label\n,cat\n", "line 2 lacks a file or a label"),
        ("image,class\na.png,cat\n", "no column file and no column label: its first line names image, class"),
        ("", "its first line names nothing"),
        ("file,label\n" + "x" * 200_000, "cannot be read as CSV"),
        ("file,label\n" + "x," * (1 << 20), "cannot be read as CSV: line 2 is longer"),
        ("file,label\na\0.png,cat\n", "labels.csv"),
    ],
)
def test_a_csv_that_lacks_something_says_what(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FvitError, match=said) as caught:
        labels_of([str(tmp_path / "a.png")], written(tmp_path, text), names=NAMES)
    assert len(str(caught.value).splitlines()) == 1


def test_a_line_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    with (tmp_path / "labels.csv").open("wb") as sparse:
        sparse.truncate(1 << 26)
    tracemalloc.start()
    try:
        with pytest.raises(
            FvitError, match="cannot be read as CSV: line 1 is longer than 1,048,576 characters"
        ):
            labels_of(["a.png"], str(tmp_path / "labels.csv"), names=NAMES)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("place", "said"), [("absent.csv", "No such file"), ("/dev/zero", "is a device")])
def test_what_is_no_csv_is_refused_at_once(place: str, said: str) -> None:
    with pytest.raises(FvitError, match=said):
        labels_of(["a.png"], place, names=NAMES)
