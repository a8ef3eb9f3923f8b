from pathlib import Path

import pytest

from fvit.errors import FvitError, OutOfMemory
from fvit.runtime.batching import fastest_batch, remembered, time_of_copy


def _seconds(rates: dict[int, float], asked: list[int] | None = None):  # type: ignore[no-untyped-def]
    def seconds(size: int) -> float:
        if asked is not None:
            asked.append(size)
        if size not in rates:
            raise OutOfMemory(f"{size} do not fit")
        return 1 / rates[size]

    return seconds


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({8: 100, 16: 150, 32: 200, 64: 260, 128: 300}, 128),  # 256 does not fit
        ({8: 100, 16: 150, 32: 196, 64: 199, 128: 200, 256: 201}, 32),  # what more gains is not worth it
        ({8: 100, 16: 90, 32: 130, 64: 131, 128: 131}, 32),  # one slow size does not end the search
        ({8: 100}, 8),
    ],
)
def test_the_smallest_batch_that_is_nearly_the_fastest_is_chosen(rates: dict[int, float], best: int) -> None:
    assert fastest_batch(_seconds(rates)) == best


def test_the_search_ends_where_two_sizes_gain_nothing() -> None:
    asked: list[int] = []
    fastest_batch(_seconds(dict.fromkeys((8, 16, 32, 64, 128, 256, 512, 1024), 100.0), asked))
    assert asked == [8, 16, 32]


@pytest.mark.parametrize(("seconds", "asked"), [(0.5, [16, 16, 64, 64, 64]), (2.0, [16, 16])])
def test_a_slow_network_is_measured_once(
    seconds: float, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, found = [0.0], []

    def run(copies: int) -> None:
        found.append(copies)
        now[0] += seconds * copies

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert time_of_copy(run, 16) == seconds
    assert found == asked


def test_a_device_that_holds_no_batch_says_so() -> None:
    with pytest.raises(OutOfMemory, match="8 do not fit"):
        fastest_batch(_seconds({}))


def test_what_was_found_is_kept_for_its_key_alone(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "batches.json"
    assert remembered(file, "one", lambda: 32, kind=int, otherwise="guess") == 32
    assert remembered(file, "two", lambda: 64, kind=int, otherwise="guess") == 64
    assert [remembered(file, key, lambda: 0, kind=int, otherwise="guess") for key in ("one", "two")] == [
        32,
        64,
    ]


def test_a_damaged_memory_is_measured_anew(tmp_path: Path) -> None:
    file = tmp_path / "batches.json"
    file.write_text('{"one": 3')
    assert remembered(file, "one", lambda: 16, kind=int, otherwise="guess") == 16
    assert remembered(file, "one", lambda: 0, kind=int, otherwise="guess") == 16


@pytest.mark.parametrize(
    "held",
    [
        "null", "5", "[]", '"one"', '{"one": null}', '{"one": [32]}', '{"one": 3.5}', '{"one": true}',
        '{"one": "32"}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_memory_of_something_else_is_measured_anew(tmp_path: Path, held: str) -> None:
    file = tmp_path / "batches.json"
    file.write_text(held)
    assert remembered(file, "one", lambda: 16, kind=int, otherwise="guess") == 16
    assert remembered(file, "one", lambda: 0, kind=int, otherwise="guess") == 16


def test_a_cache_that_cannot_be_written_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(FvitError, match="guess$"):
        remembered(tmp_path / "cache" / "batches.json", "one", lambda: 16, kind=int, otherwise="guess")
