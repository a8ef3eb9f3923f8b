import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fvit.errors import FvitError
from fvit.evaluation.keeping import NAME, Asked, Kept
from fvit.evaluation.measures import Cut, Judged, Measures
from fvit.evaluation.measuring import mask_sha256
from fvit.runtime.images import Picture, read_image
from tests.evaluation.cases import masked, measures

ASKED = Asked(
    bundle="b" * 64, engine="onnxruntime, cpu, fp32", sigma=0.25, n=100, alpha=0.001, k=10, beta=0.8,
    perturbed_n=16,
)  # fmt: skip
MASK = np.ones((4, 4), np.int8)


def picture(value: int) -> Picture:
    return read_image(np.full((4, 4, 3), value, np.uint8), size=(4, 4))


def of(image: Picture, *, seed: int = 7, share: float = 0.5, with_mask: bool = False) -> Measures:
    mask = masked(labelled=16, object=16, tokens=(0,), cut=Cut(predicted=1, hit=1))
    mask = mask.model_copy(update={"sha256": mask_sha256(MASK)})
    return measures(plain=Judged(index=0, share=share), mask=mask if with_mask else None).model_copy(
        update={"pixels_sha256": image.pixels_sha256, "seed": seed}
    )


def test_a_later_run_finds_what_was_measured(tmp_path: Path) -> None:
    one, other = picture(1), picture(2)
    with Kept(tmp_path, ASKED) as kept:
        assert kept.find(one, None, seed=7) is None
        kept.append(of(one))
        assert kept.find(one, None, seed=7) == of(one)
    with Kept(tmp_path, ASKED) as kept:
        kept.append(of(other, share=0.25))
        assert kept.find(one, None, seed=7) == of(one)
        assert kept.find(other, None, seed=7) == of(other, share=0.25)


def test_another_mask_and_another_certificate_are_measured_anew(tmp_path: Path) -> None:
    one = picture(1)
    with Kept(tmp_path, ASKED) as kept:
        kept.append(of(one, with_mask=True))
        assert kept.find(one, MASK, seed=7) == of(one, with_mask=True)
        assert kept.find(one, None, seed=7) is None
        assert kept.find(one, 1 - MASK, seed=7) is None
        assert kept.find(one, MASK, seed=8) is None


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path: Path) -> None:
    one, other = picture(1), picture(2)
    with Kept(tmp_path, ASKED) as kept:
        kept.append(of(one))
        kept.append(of(other))
        secret = kept.asked.secret
    whole = (tmp_path / NAME).read_bytes()
    first, second, _ = whole.splitlines(keepends=True)
    for cut in (len(whole) - 1, len(first + second) + 1, len(first + second)):
        (tmp_path / NAME).write_bytes(whole[:cut])
        with Kept(tmp_path, ASKED) as kept:
            assert kept.find(one, None, seed=7) == of(one) and kept.find(other, None, seed=7) is None
            kept.append(of(other))
            assert kept.asked.secret == secret
        assert (tmp_path / NAME).read_bytes() == whole


def test_even_the_first_line_may_be_cut_off(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b'{"bundle":"bbbb')
    with Kept(tmp_path, ASKED) as kept:
        kept.append(of(picture(1)))
    assert len((tmp_path / NAME).read_bytes().splitlines()) == 2


def test_seeds_come_from_a_secret_that_is_drawn_once(tmp_path: Path) -> None:
    """So that a run that was stopped goes on with the same noise, and nobody knows an image's seed from those
    of others."""
    seeds = []
    for folder in ("a", "a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        with Kept(tmp_path / folder, ASKED) as kept:
            seeds.append([kept.asked.seed_of(picture(value)) for value in range(3)])
    assert seeds[0] == seeds[1] != seeds[2]
    assert len({seed for each in seeds for seed in each}) == 6
    secret = json.loads((tmp_path / "a" / NAME).read_bytes().splitlines()[0])["secret"]
    together = bytes.fromhex(secret) + bytes.fromhex(picture(0).pixels_sha256)
    assert seeds[0][0] == int.from_bytes(hashlib.sha256(together).digest()[:8], "little")


def test_a_seed_that_is_given_is_every_image_s(tmp_path: Path) -> None:
    with Kept(tmp_path, ASKED.model_copy(update={"seed": 5})) as kept:
        assert [kept.asked.seed_of(picture(value)) for value in range(2)] == [5, 5]
        assert kept.asked.secret is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n": 200}, "n = 100, not 200"),
        ({"sigma": 0.5}, "sigma = 0.25, not 0.5"),
        ({"bundle": "c" * 64}, "bundle = bbb"),
        ({"perturbed_n": 0}, "perturbed_n = 16, not 0"),
        ({"seed": 5}, "seed = entropy, not 5"),
    ],
)
def test_a_folder_answers_one_question(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    Kept(tmp_path, ASKED).close()
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(FvitError, match=said):
        Kept(tmp_path, ASKED.model_copy(update=changed))
    assert (tmp_path / NAME).read_bytes() == before


def test_what_is_none_of_it_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    for notes in ("my notes\n", "my notes"):
        (tmp_path / NAME).write_text(notes)
        with pytest.raises(FvitError, match="was not begun by this fvit-evaluate"):
            Kept(tmp_path, ASKED)
        assert (tmp_path / NAME).read_text() == notes
    (tmp_path / NAME).unlink()
    Kept(tmp_path, ASKED).close()
    with (tmp_path / NAME).open("a") as opened:
        opened.write("{}\n")
    with pytest.raises(FvitError, match="line 2 is no line of fvit-evaluate"):
        Kept(tmp_path, ASKED)
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    with pytest.raises(FvitError, match="cannot write"):
        Kept(tmp_path, ASKED)
