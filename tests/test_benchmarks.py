"""What benchmarks keep as they go, and what they read of the machine."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import joules
from benchmarks.keeping import resumed


@pytest.mark.parametrize("at_once", [1, 3])
def test_what_is_kept_is_not_measured_again_and_a_torn_line_is(at_once: int, tmp_path: Path) -> None:
    measured = []

    def measure(i: int) -> dict[str, Any]:
        measured.append(i)
        return {"square": i * i}

    file = tmp_path / "work" / "kept.jsonl"
    assert resumed(file, 3, measure, words="", at_once=at_once) == [{"square": i * i} for i in range(3)]
    file.write_bytes(file.read_bytes()[:-3])
    measured.clear()
    assert resumed(file, 5, measure, words="", at_once=at_once) == [{"square": i * i} for i in range(5)]
    assert sorted(measured) == [2, 3, 4]
    assert resumed(file, 2, measure, words="", at_once=at_once) == [{"square": 0}, {"square": 1}]


@pytest.mark.parametrize("at_once", [1, 2])
def test_what_was_measured_before_an_error_is_kept_and_no_more_is_begun(at_once: int, tmp_path: Path) -> None:
    begun = []

    def measure(i: int) -> dict[str, Any]:
        begun.append(i)
        if i == 2:
            raise KeyboardInterrupt
        return {"i": i}

    with pytest.raises(KeyboardInterrupt):
        resumed(tmp_path / "kept.jsonl", 9, measure, words="", at_once=at_once)
    assert (tmp_path / "kept.jsonl").read_text() == '{"i": 0}\n{"i": 1}\n'
    assert max(begun) <= 1 + at_once


def test_the_energy_is_that_of_the_packages_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted inside a package, and by the platform around it, is the packages' already."""
    monkeypatch.setattr(joules, "COUNTERS", tmp_path)
    assert joules.joules() is None
    zones = {"0": ("package-0", 5), "0:0": ("core", 3), "1": ("package-1", 7), "2": ("psys", 20)}
    for number, (name, million) in zones.items():
        folder = tmp_path / f"intel-rapl:{number}"
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{million * 10**6}\n")
    assert joules.joules() == 12
