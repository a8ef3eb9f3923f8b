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


@pytest.fixture
def results(tree: Path) -> tuple[Path, Path]:
    """Where a run puts its own, by a link too."""
    (tree / "also").symlink_to(tree / "out")
    return tree / "out", tree / "out" / "thumbnails"


def run_into(folder: Path) -> None:
    """Leave what a run leaves."""
    (folder / "thumbnails").mkdir(parents=True)
    for name in ("1-0a.png", "2-0b.png", "thumbnails/0a.webp"):
        (folder / name).touch()


@pytest.mark.parametrize("pattern", ["", "**/*.*"])
def test_a_search_that_comes_by_its_own_results_finds_what_it_found_before(
    tree: Path, results: tuple[Path, Path], pattern: str
) -> None:
    skipped: list[tuple[str, str]] = []

    def found() -> list[str]:
        return find_images(
            [tree / pattern], recursive=True, results=results, on_skip=lambda *said: skipped.append(said)
        )

    before = found()
    assert (len(before), skipped) == (6, [])
    run_into(tree / "out")
    assert found() == before
    assert sorted(skipped) == [
        (f"{tree}/out/*", "results go there; images left out: 2"),
        (f"{tree}/out/thumbnails/*", "results go there; images left out: 1"),
    ]


def test_images_deeper_in_the_folder_of_results_are_none_of_them(
    tree: Path, results: tuple[Path, Path]
) -> None:
    run_into(tree)
    found = find_images([tree], recursive=True, results=(tree, tree / "thumbnails"))
    assert names(found, tree) == ["cat/1.png", "cat/2.png", "dog/deep/down/3.gif"]


def test_a_file_of_the_results_that_is_named_is_an_image(tree: Path, results: tuple[Path, Path]) -> None:
    run_into(tree / "out")
    assert find_images([tree / "out" / "1-0a.png"], results=results) == [str(tree / "out" / "1-0a.png")]


@pytest.mark.parametrize("pattern", ["", "*.jpeg"])
def test_images_that_lie_where_the_results_go_are_refused_at_every_run(tree: Path, pattern: str) -> None:
    for _ in ("before a run", "after it"):
        with pytest.raises(FvitError, match="holds no image but where the results go: choose another --out"):
            find_images([tree / pattern], results=(tree, tree / "thumbnails"))
        if not (tree / "thumbnails").exists():
            run_into(tree)


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
