import inspect
import io
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fvit.errors import FvitError
from fvit.runtime.inputs import LONGEST_PATH, find_images, listed
from tests.runtime.test_images import SPECIAL


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images in folders, and what else lies about."""
    for name in ("b.PNG", "a.jpeg", "c.tiff", "notes.txt", "cat/2.png", "cat/1.png", "dog/deep/down/3.gif"):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "tree" / "empty").mkdir()
    return tmp_path / "tree"


def names(found: list[str], tree: Path) -> list[str]:
    return [str(Path(file).relative_to(tree)) for file in found]


def test_a_folders_images_come_in_the_order_of_their_names_and_those_deeper_down_where_asked(
    tree: Path,
) -> None:
    assert names(find_images([tree]), tree) == ["a.jpeg", "b.PNG", "c.tiff"]
    everything = ["a.jpeg", "b.PNG", "c.tiff", "cat/1.png", "cat/2.png", "dog/deep/down/3.gif"]
    assert names(find_images([tree], recursive=True), tree) == everything


def test_places_come_in_the_order_in_which_they_are_given_whatever_files_are_called(tree: Path) -> None:
    assert names(find_images([tree / "cat", str(tree / "notes.txt"), tree / "a.jpeg"]), tree) == [
        "cat/1.png", "cat/2.png", "notes.txt", "a.jpeg"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("*", ["a.jpeg", "b.PNG", "c.tiff", "cat/1.png", "cat/2.png"]),
        ("c*", ["c.tiff", "cat/1.png", "cat/2.png"]),
        ("[ab].*", ["a.jpeg", "b.PNG"]),
        ("*/?.png", ["cat/1.png", "cat/2.png"]),
        ("**/*.gif", ["dog/deep/down/3.gif"]),
        ("**", ["a.jpeg", "b.PNG", "c.tiff", "cat/1.png", "cat/2.png", "dog/deep/down/3.gif"]),
        ("**/*.png", ["cat/1.png", "cat/2.png"]),
        ("**/d*/**/*.gif", ["dog/deep/down/3.gif"]),
        ("**/**/1.png", ["cat/1.png"]),
        ("*/", ["cat/1.png", "cat/2.png"]),
        ("cat/./../c*/[!1].*", ["cat/../cat/2.png"]),
        (".h*/*", [".hidden/4.png"]),
    ],
)
def test_a_pattern_names_images_and_folders_of_them_each_once(
    tree: Path, pattern: str, matches: list[str]
) -> None:
    (tree / "empty").rmdir()
    (tree / ".hidden").mkdir()
    (tree / ".hidden" / "4.png").touch()
    found = names(find_images([f"{tree}/{pattern}"]), tree)
    assert sorted(found) == matches


def test_what_a_pattern_finds_is_called_as_the_pattern_begins(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    assert find_images(["**/*.png", "./**/2.png"]) == ["cat/1.png", "cat/2.png", "./cat/2.png"]


def test_a_name_that_looks_like_a_pattern_is_a_name_where_there_is_such_a_file(tree: Path) -> None:
    (tree / "[ab].png").touch()
    assert names(find_images([tree / "[ab].png"]), tree) == ["[ab].png"]


def test_a_link_that_leads_back_up_is_followed_once(tree: Path) -> None:
    (tree / "dog" / "back").symlink_to(tree)
    (tree / "other").symlink_to(tree / "cat")
    found = names(find_images([tree], recursive=True), tree)
    assert len(found) == 6
    assert "cat/1.png" in found


@pytest.mark.parametrize("pattern", ["**/*.png", "**/cat/**/*.png", "*/**/*.png"])
def test_two_stars_come_to_a_folder_once_though_a_link_leads_back_up(tree: Path, pattern: str) -> None:
    (tree / "dog" / "back").symlink_to(tree)
    assert len(find_images([tree / pattern])) == 2


def test_a_link_that_leads_to_itself_is_no_folder(tree: Path) -> None:
    (tree / "dog" / "loop").symlink_to("loop")
    assert len(find_images([tree], recursive=True)) == 6


@pytest.mark.parametrize("pattern", ["", "**/*.png"])
def test_folders_may_be_nested_deeper_than_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    folder = tmp_path
    for _ in range(200):
        folder /= "d"
        folder.mkdir()
    (folder / "a.png").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        assert find_images([tmp_path / pattern], recursive=True) == [str(folder / "a.png")]
    finally:
        sys.setrecursionlimit(limit)


# Results among the images.


@pytest.mark.parametrize("pattern", ["", "**/*.*"])
def test_a_search_passes_over_results_with_a_word(tree: Path, pattern: str) -> None:
    skipped: list[tuple[str, str]] = []
    found = find_images(
        [tree / pattern],
        recursive=True,
        is_result=lambda file: "cat" in file,
        on_skip=lambda *said: skipped.append(said),
    )
    assert found and not any("cat" in file for file in found)
    assert skipped == [(f"{tree}/cat/1.png", "a picture of an earlier run, one of 2")]


def test_a_result_that_is_named_is_an_image(tree: Path) -> None:
    file = str(tree / "cat" / "1.png")
    assert find_images([file], is_result=lambda file: True) == [file]


def test_results_alone_are_no_images(tree: Path) -> None:
    with pytest.raises(FvitError, match="holds no image but pictures of an earlier run"):
        find_images([tree / "cat"], is_result=lambda file: True)


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_passed_over_in_a_folder_with_a_word(
    kind: str, photo: Path, tmp_path: Path
) -> None:
    SPECIAL[kind](tmp_path / "odd.png")
    skipped: list[tuple[str, str]] = []
    places = [tmp_path] if kind == "a folder" else [tmp_path, tmp_path / "*.png"]  # which matches the folder
    found = find_images(places, on_skip=lambda *said: skipped.append(said))
    assert found == [str(photo)] * len(places)
    assert [file for file, _ in skipped] == [str(tmp_path / "odd.png")] * len(places)
    assert all(kind in reason for _, reason in skipped)
    if kind != "a folder":
        assert find_images([tmp_path / "odd.png"]) == [str(tmp_path / "odd.png")]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("empty", r"empty holds no image \(.*\.png.*--recursive"),
        ("absent", "absent does not exist"),
        ("*.bmp", r"\*\.bmp holds no image"),
        ("notes.txt/a.png", r"notes\.txt/a\.png cannot be read: Not a directory"),
        ("a\0b", "cannot be read: .*null"),
    ],
)
def test_where_there_is_nothing_that_is_said(tree: Path, place: str, said: str) -> None:
    with pytest.raises(FvitError, match=said):
        find_images([tree / "cat", f"{tree}/{place}"])


# Lists.

PATHS = ["a.png", "with space.png", "Þ.png", os.fsdecode(b"caf\xe9.png"), "[a].png"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
@pytest.mark.parametrize("last", [True, False])
def test_a_list_has_a_path_a_line_or_each_ended_by_a_nul(tmp_path: Path, end: bytes, last: bool) -> None:
    written = end.join(map(os.fsencode, PATHS)) + (end if last else b"")
    (tmp_path / "list").write_bytes(written + end * 2)
    assert list(listed(str(tmp_path / "list"))) == PATHS


def test_only_nuls_end_a_path_that_holds_a_newline(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"two\nlines.png\0b.png\0")
    assert list(listed(str(tmp_path / "list"))) == ["two\nlines.png", "b.png"]


def test_a_long_list_comes_whole(tmp_path: Path) -> None:
    paths = [f"{'x' * (number % 300)}{number}.png" for number in range(5000)]
    (tmp_path / "list").write_text("\n".join(paths))
    assert list(listed(str(tmp_path / "list"))) == paths


def test_the_standard_input_is_a_list_called_minus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a.png\nb.png\n")))
    assert list(listed("-")) == ["a.png", "b.png"]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(FvitError, match="closed"):
        list(listed("-"))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/dev/zero", "is a device"),
        ("absent", "cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
        ("long", "entry 2 is longer than any"),
    ],
)
def test_what_is_no_list_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long").write_bytes(b"a.png\n" + b"x" * (LONGEST_PATH + 1))
    with pytest.raises(FvitError, match=said):
        list(listed(place))


def test_a_pipe_that_somebody_writes_to_is_a_list(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a.png\nb.png\n")
    os.close(writing)
    try:
        assert list(listed(f"/dev/fd/{reading}")) == ["a.png", "b.png"]
        assert stat.S_ISFIFO(os.fstat(reading).st_mode)
    finally:
        os.close(reading)
