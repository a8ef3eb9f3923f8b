"""What a process keeps of models that it loaded, used and closed, or left to a forked child."""

import os
from pathlib import Path

import fvit
from benchmarks.lifetime import lives


def test_loading_using_and_closing_again_and_again_keeps_nothing(demo_bundle: Path) -> None:
    """benchmarks/lifetime.py has 200 cycles; models that stayed would show in a few, at over 15 MB each."""
    found = list(lives(demo_bundle, cycles=12))[4:]
    assert {each["threads"] for each in found} == {found[0]["threads"]}
    assert {each["files"] for each in found} == {found[0]["files"]}
    assert found[-1]["allocated"] < found[0]["allocated"] + 10


def test_a_model_is_of_no_use_in_a_forked_child_and_says_so(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    """It ends there at once, too: nothing waits for threads that did not come along."""
    vit.predict(samples[0], n=16)
    child = os.fork()
    if child == 0:
        told = 0
        for use in (vit.predict, vit.certify, lambda image: next(iter(vit.refine(image)))):
            try:
                use(samples[0])
            except fvit.FvitError as error:
                told += "forked" in str(error)
        vit.close()
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert vit.predict(samples[0], n=16).counts.sum() == 16
