import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvit.certificates.record import Certificate
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.runtime.images import Picture
from fvit.runtime.journal import LOCK, NAME, Journal

TERMS = Terms(
    sigma=0.25, n=100, alpha=0.001, k=(2,), beta=0.8, aggregate="vote", seed=7, size=(4, 4), radius=None
)
BUNDLE = "b" * 64


def picture(number: int, name: str = "a.png") -> Picture:
    """The image whose pixels all have this value."""
    pixels = np.full((3, 4, 4), number, np.uint8)
    return Picture(pixels, name, f"{number:064x}", f"{number:064x}", None)


def record_of(image: Picture, terms: Terms = TERMS, *, bundle: str = BUNDLE) -> dict[str, Any]:
    """What fvit-certify writes of copies that all agree."""
    tally = Tally(2, 4, terms.k, betting=terms.aggregate == "mean")
    logits, attribution = np.array([1, 0], np.float32), np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    tally.add(np.tile(logits, (terms.n, 1)), np.tile(attribution, (terms.n, 1)))
    return Certificate.of(
        tally,
        terms,
        image=image.name,
        sha256=image.sha256,
        pixels_sha256=image.pixels_sha256,
        labels=("cat", "dog"),
        grid=(2, 2),
        engine={"name": "onnxruntime", "device": "cpu", "precision": "fp32"},
        bundle=bundle,
        seconds=1.5,
    ).to_dict()


RECORD = record_of(picture(1))


def numbered(number: int, **other: Any) -> dict[str, Any]:
    """A record of picture(number), made of another."""
    return {**RECORD, "sha256": f"{number:064x}", "pixels_sha256": f"{number:064x}", **other}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The records in the file, which must be whole lines."""
    data = (folder / NAME).read_bytes()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def found(journal: Journal, number: int, terms: Terms = TERMS, **other: Any) -> dict[str, Any] | None:
    certificate = journal.find(picture(number), terms, **{"bundle": BUNDLE, **other})
    return None if certificate is None else certificate.to_dict()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "out"


def test_a_later_run_finds_what_was_done_and_goes_on(out: Path) -> None:
    with Journal(out) as journal:
        assert found(journal, 1) is None
        journal.append(RECORD)
        assert found(journal, 1) == RECORD
    with Journal(out) as journal:
        assert found(journal, 1) == RECORD and found(journal, 2) is None
        journal.append(numbered(2))
        assert found(journal, 2) == numbered(2)
    assert lines_of(out) == [RECORD, numbered(2)]
    assert [entry.name for entry in out.iterdir()] == [NAME]


def test_an_image_is_its_pixels_whatever_it_is_called(out: Path) -> None:
    with Journal(out) as journal:
        journal.append(RECORD)
        again = journal.find(picture(1, "copy of a.png"), TERMS, bundle=BUNDLE)
        assert again is not None and again.to_dict() == RECORD


@pytest.mark.parametrize(
    "other",
    [
        {"sigma": 0.5}, {"n": 200}, {"alpha": 0.01}, {"k": (3,)}, {"k": (2, 3)}, {"beta": 0.5},
        {"aggregate": "mean"}, {"radius": 0.1}, {"refining": True},
    ],
)  # fmt: skip
def test_other_terms_are_another_question(out: Path, other: dict[str, Any]) -> None:
    terms = dataclasses.replace(TERMS, **other)
    with Journal(out) as journal:
        journal.append(RECORD)
        assert found(journal, 1, terms) is None
        answer = record_of(picture(1), terms)
        journal.append(answer)
    with Journal(out) as journal:
        assert found(journal, 1, terms) == answer and found(journal, 1) == RECORD


def test_another_bundle_is_another_question(out: Path) -> None:
    with Journal(out) as journal:
        journal.append(RECORD)
        assert found(journal, 1, bundle="c" * 64) is None


def test_a_seed_counts_only_where_it_is_given(out: Path) -> None:
    with Journal(out) as journal:
        journal.append(RECORD)
        journal.append({**RECORD, "seed": 8})
        assert found(journal, 1, dataclasses.replace(TERMS, seed=None)) == RECORD
        assert found(journal, 1, dataclasses.replace(TERMS, seed=8)) == {**RECORD, "seed": 8}
        assert found(journal, 1, dataclasses.replace(TERMS, seed=9)) is None


@pytest.mark.parametrize(
    "name",
    [
        "two\nlines\r.png",
        "[bold]a[/].png",
        "\u2028\u2029\x85\x0b\x0c\x1c.png",
        "Þ.png",
        "caf\udce9.png",
        "\0",
        "\U0001f600",
    ],
)
def test_whatever_a_file_is_called_its_record_is_one_line_of_utf_8(out: Path, name: str) -> None:
    record = {**RECORD, "image": name, "class": {**RECORD["class"], "label": name}}
    with Journal(out) as journal:
        journal.append(record)
        journal.append(numbered(2))
    assert len((out / NAME).read_bytes().decode().splitlines()) == 2
    assert lines_of(out)[0] == record
    with Journal(out) as journal:
        assert found(journal, 1) == record and found(journal, 2) == numbered(2)


def test_lines_that_others_wrote_with_such_characters_as_they_are_are_read(out: Path) -> None:
    records = [{**RECORD, "image": "a\u2028\x85.png"}, numbered(2)]
    write(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
    with Journal(out) as journal:
        assert [found(journal, 1), found(journal, 2)] == records


def write(out: Path, data: bytes) -> bytes:
    out.mkdir(parents=True, exist_ok=True)
    (out / NAME).write_bytes(data)
    return data


def line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


# What a crash leaves behind.


@pytest.mark.parametrize("before", [0, 2])
def test_a_line_that_was_cut_off_anywhere_is_dropped_when_the_run_goes_on(out: Path, before: int) -> None:
    whole, last = b"".join(line(numbered(1 + i)) for i in range(before)), line(numbered(8))
    for cut in [*range(0, 40), *range(40, len(last), 97), len(last) - 2]:
        data = write(out, whole + last[:cut])
        with Journal(out) as journal:
            assert (out / NAME).read_bytes() == data  # opening alters nothing
            assert all(found(journal, 1 + i) for i in range(before)) and found(journal, 8) is None
            journal.append(numbered(9))
        assert lines_of(out) == [*(numbered(1 + i) for i in range(before)), numbered(9)]


def test_a_record_that_lacks_its_newline_alone_is_kept(out: Path) -> None:
    data = write(out, line(RECORD) + line(numbered(2))[:-1])
    with Journal(out) as journal:
        assert (out / NAME).read_bytes() == data
        assert found(journal, 2) == numbered(2)
        journal.append(numbered(3))
        assert found(journal, 3) == numbered(3)
    assert lines_of(out) == [RECORD, numbered(2), numbered(3)]


@pytest.mark.parametrize("spoils", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [b"", line(RECORD), line(RECORD)[:-1]])
def test_a_record_that_cannot_be_finished_leaves_nothing(
    out: Path, there: bytes, spoils: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: int) -> None:
        raise spoils

    write(out, there)
    with Journal(out) as journal:
        with monkeypatch.context() as broken:
            broken.setattr("os.fsync", fails)
            with pytest.raises((FvitError, KeyboardInterrupt), match=r"^$|No space left"):
                journal.append(numbered(2))
        assert (out / NAME).read_bytes() == there and found(journal, 2) is None
        journal.append(numbered(3))
    assert lines_of(out) == ([RECORD] if there else []) + [numbered(3)]


FILLS = """
import json, resource, sys
from pathlib import Path
from fvit.errors import FvitError
from fvit.runtime.journal import Journal
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
record = json.loads(sys.stdin.read())
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
written = 0
with Journal(folder) as journal:
    try:
        for written in range(100):
            journal.append({**record, "pixels_sha256": f"{written:064x}"})
    except FvitError as error:
        print(written, error)
"""


def test_a_disk_that_is_full_from_the_start_is_said_and_nothing_is_left(out: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FILLS, str(out), "0"], input="{}", capture_output=True, text=True
    )  # fmt: skip
    assert f"FvitError: cannot write to {out}: File too large" in ran.stderr
    assert not list(out.iterdir())


@pytest.mark.parametrize("lines", [0.5, 3.7, 3.999])
def test_a_full_disk_leaves_whole_lines(out: Path, lines: float) -> None:
    limit = int(lines * len(line(RECORD)))
    ran = subprocess.run(
        [sys.executable, "-c", FILLS, str(out), str(limit)],
        input=json.dumps(RECORD), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.startswith(f"{int(lines)} cannot write {out / NAME}: File too large")
    assert len(lines_of(out)) == int(lines)
    with Journal(out) as journal:
        journal.append(numbered(1000))
    assert len(lines_of(out)) == int(lines) + 1


# What is no journal.


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"my notes", 1), (b"my notes\n", 1), (b"\n", 1), (b" ", 1), (b"{}", 1), (b"{}\n", 1), (b"[]\n", 1),
        (b"7\n", 1), (b"null\n", 1), (b'{"image": "a.png", "x": [1]}', 1), (b'{"image": "a.png"}\n', 1),
        (b'"image"\n', 1), (b"\xff\xfe\x00", 1), (b"\x00" * 100, 1), (b"\x89PNG\r\n\x1a\n", 1),
        (b"[" * 100_000 + b"\n", 1), (b'{"image": ' + b"9" * 9999 + b"}\n", 1),
        (line(RECORD) + b"my notes", 2), (line(RECORD) + b"\n", 2), (line(RECORD) + b'{"image":"a', 2),
        (line(RECORD) + line(RECORD)[:50] + b"\n" + line(RECORD), 2),
        (line(RECORD).replace(b"a.png", b"\xff.png"), 1), (json.dumps(RECORD).encode("utf-16") + b"\n", 1),
        (line({**RECORD, "seed": 1.5}), 1), (line({**RECORD, "seed": True}), 1),
        (line({**RECORD, "bundle": []}), 1), (line({**RECORD, "attention": 1}), 1),
        (line({**RECORD, "attention": [RECORD["attention"]]}), 1),
        (line({**RECORD, "explanations": 3}), 1), (line({**RECORD, "decision": {}}), 1),
        (line({**RECORD, "pixels_sha256": 3}), 1), (line({**RECORD, "sigma": {}}), 1),
        (line({**RECORD, "n0": 100}), 1),
        (b"".join(line({key: value for key, value in RECORD.items() if key != "seed"}) for _ in "12"), 1),
    ],
)  # fmt: skip
def test_a_file_that_is_no_journal_is_named_by_its_line_and_never_altered(
    out: Path, data: bytes, number: int
) -> None:
    write(out, data)
    with pytest.raises(FvitError, match=f"{NAME}, line {number} ") as caught:
        Journal(out)
    assert len(str(caught.value).splitlines()) == 1
    assert (out / NAME).read_bytes() == data
    assert [entry.name for entry in out.iterdir()] == [NAME]


def test_a_line_without_end_is_no_record_and_not_read_to_its_end(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fvit.runtime.journal.LONGEST", 1 << 16)
    write(out, line(RECORD))
    with (out / NAME).open("r+b") as sparse:
        sparse.truncate(1 << 26)
    tracemalloc.start()
    try:
        with pytest.raises(FvitError, match=f"{NAME}, line 2 is no record"):
            Journal(out)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_no_line_is_written_that_is_too_long_to_be_read(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvit.runtime.journal.LONGEST", len(line(RECORD)))
    with Journal(out) as opened:
        opened.append(RECORD)
        with pytest.raises(FvitError, match=r"the record of a_\.png would have .* give fewer --top-k"):
            opened.append(numbered(2, image="a_.png"))
        opened.append(numbered(3))
    with Journal(out) as opened:
        assert found(opened, 1) == RECORD and found(opened, 2) is None and found(opened, 3) == numbered(3)


def test_a_record_that_was_altered_is_refused_when_it_is_wanted(out: Path) -> None:
    write(out, line(RECORD) + line({**numbered(2), "class": {}}))
    with Journal(out) as journal:
        assert found(journal, 1) == RECORD
        with pytest.raises(FvitError, match="line 2 is no record"):
            found(journal, 2)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda file: file.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused(out: Path, make: Any) -> None:
    out.mkdir(parents=True)
    make(out / NAME)
    with pytest.raises(FvitError, match="no regular file|Is a directory"):
        Journal(out)
    assert [entry.name for entry in out.iterdir()] == [NAME]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(FvitError, match="cannot write to"):
            Journal(place)


def files_of(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir() if file.is_file() and file.name != LOCK}


def test_a_file_that_something_else_changes_meanwhile_is_left_to_it(out: Path) -> None:
    for change in (
        lambda: (out / NAME).write_bytes(line(RECORD) + b"my notes\n"),
        lambda: (out / NAME).write_bytes(b""),
        lambda: (out / NAME).rename(out / "moved"),
        lambda: write(out / "other", line(RECORD)) and (out / "other" / NAME).replace(out / NAME),
    ):
        with Journal(out) as journal:
            journal.append(RECORD)
            change()
            there = files_of(out)
            with pytest.raises(FvitError, match="changed by something else"):
                journal.append(numbered(2))
            assert files_of(out) == there
        (out / NAME).unlink(missing_ok=True)


# Who owns a folder.

OWNS = """
import sys
from pathlib import Path
from fvit.errors import FvitError
from fvit.runtime.journal import Journal
sys.stdin.readline()
try:
    with Journal(Path(sys.argv[1])):
        print("owns", flush=True)
        sys.stdin.readline()
except FvitError as error:
    print(error, flush=True)
"""


@pytest.fixture
def starts(out: Path) -> Iterator[Any]:
    """Start processes that ask for the folder when told to."""
    started: list[subprocess.Popen[str]] = []

    def start(count: int) -> list[subprocess.Popen[str]]:
        command = [sys.executable, "-c", OWNS, str(out)]
        for _ in range(count):
            started.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def tell(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def hear(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("count", [2, 8])
def test_of_several_runs_at_once_one_owns_the_folder_and_the_others_say_which(
    out: Path, starts: Any, count: int
) -> None:
    processes = starts(count)
    for process in processes:
        tell(process)
    said = {process: hear(process) for process in processes}
    (owner,) = (process for process, words in said.items() if words == "owns")
    refused = f"{out} is in use by process {owner.pid}: wait for it or choose another --out"
    assert [words for process, words in said.items() if process is not owner] == [refused] * (count - 1)
    tell(owner)
    assert owner.wait() == 0
    with Journal(out):
        pass
    assert [entry.name for entry in out.iterdir()] == [NAME]


def test_a_killed_run_owns_nothing(out: Path, starts: Any) -> None:
    (owner,) = starts(1)
    tell(owner)
    assert hear(owner) == "owns"
    with pytest.raises(FvitError, match=f"in use by process {owner.pid}"):
        Journal(out)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with Journal(out) as journal:
        journal.append(RECORD)
    assert [entry.name for entry in out.iterdir()] == [NAME]


def test_a_folder_is_owned_once_in_a_process_too(out: Path) -> None:
    with Journal(out), pytest.raises(FvitError, match=f"in use by process {os.getpid()}:"):
        Journal(out)
    Journal(out).close()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"12 elsewhere\n", "process 12 on elsewhere"),
        (b"", "another process"),
        (b"12", "another process"),
        (b"nonsense\n" * 99, "another process"),
        (f"999999999 {os.uname().nodename}\n".encode(), "another process"),
    ],
)
def test_who_owns_a_folder_is_said_only_where_it_is_known(
    out: Path, written: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    out.mkdir(parents=True)
    (out / LOCK).write_bytes(written)
    with (out / LOCK).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FvitError, match=f"in use by {said}: "):
            Journal(out)
    with Journal(out):
        pass
    assert not (out / LOCK).exists()


def test_a_lock_is_not_written_through_a_link(out: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("years of work")
    out.mkdir(parents=True)
    (out / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(FvitError, match="cannot write"):
        Journal(out)
    assert (tmp_path / "precious").read_text() == "years of work"
