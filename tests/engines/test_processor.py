from pathlib import Path

import pytest

from fvit.engines import processor

X86 = """processor\t: 0
model name\t: AMD EPYC 9B14
flags\t\t: fpu avx avx2 avx512f avx512_vnni avx512_bf16
processor\t: 1
model name\t: AMD EPYC 9B14
flags\t\t: fpu avx avx2 avx512f avx512_vnni avx512_bf16
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\n"


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(processor, "DESCRIBED", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


def test_a_processor_is_told_by_its_model_and_what_it_multiplies(described: Path) -> None:
    described.write_text(X86)
    assert processor.name() == "AMD EPYC 9B14"
    assert processor.instructions() == "avx2 avx512f avx512_vnni avx512_bf16"
    assert processor.has("vnni") and not processor.has("amx")
    described.write_text(ARM)
    assert processor.instructions() == "asimddp i8mm bf16"
    assert processor.name() != ""


def test_where_nothing_describes_it_there_is_a_name_all_the_same(described: Path) -> None:
    assert processor.name() != ""
    assert processor.instructions() == ""
    assert not processor.has("avx2")
