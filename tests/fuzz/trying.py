"""How much is tried, and how what is well formed is spoiled."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.commands import WAITS

LONG = "FVIT_FUZZ" in os.environ
"""Whether to try a hundred times as much, and each time something else (make fuzz)."""

HANGS = 10
"""Seconds of the process's own time, which no other takes from it, after which something hangs: as is
promised."""


def tried(count: int) -> settings:
    """Settings for so many examples; the same ones each time, unless much is tried."""
    return settings(
        max_examples=count * (100 if LONG else 1),
        derandomize=not LONG,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Hangs(BaseException):
    """No Exception, which what is tried might take for its own."""


@contextmanager
def promptly() -> Iterator[None]:
    """What is inside fails where it hangs."""

    with (
        _alarm(signal.SIGPROF, signal.ITIMER_PROF, HANGS, "computes"),
        _alarm(signal.SIGALRM, signal.ITIMER_REAL, WAITS, "waits"),
    ):
        yield


@contextmanager
def _alarm(number: signal.Signals, clock: int, seconds: int, what: str) -> Iterator[None]:
    def fail(number: int, frame: object) -> NoReturn:
        raise Hangs(f"{what} for more than {seconds} seconds")

    before = signal.signal(number, fail)
    signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        signal.setitimer(clock, 0)
        signal.signal(number, before)


NONSENSE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([10**30, -1, 0, 1, 2, 2**53, 2**64, 2**70]),
    st.floats(), st.sampled_from([1e-320, 1e308, -0.0, 0.5, 1.0]), st.text(max_size=20),
    st.sampled_from(["", "../x", "/dev/zero", "fp16", "0" * 64, "\u2028", "[red]", "a.onnx", "\ud800"]),
    st.lists(st.integers() | st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.builds(lambda: [[]]), st.builds(lambda: [{}]),
)  # fmt: skip

RAW = st.sampled_from(
    [
        "NaN", "-Infinity", "1e999", "9" * 5000, "[" * 5000, '{"a":' * 5000, '"\\ud800"', '"\\u0000"', "\x00",
        "{}", ",",
    ]
)  # fmt: skip
"""What JSON's texts may be spoiled with, which no value is written as."""


@st.composite
def spoiled(draw: st.DrawFn, value: Any) -> str:
    """The JSON text of a value with up to three places deleted, replaced, nested or repeated."""
    holder = [json.loads(json.dumps(value))]
    for _ in range(draw(st.integers(0, 3))):
        _change(draw, *_place(draw, holder))
    text = json.dumps(holder[0] if holder else None)
    if draw(st.integers(0, 9)) == 0:
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 20)) | st.just(len(text)))
        text = text[:start] + draw(RAW | st.just("")) + text[end:]
    return text


def _place(draw: st.DrawFn, holder: Any) -> tuple[Any, Any]:
    """A list or object somewhere inside, and one of its keys; as likely far down as near the top."""
    key: Any = 0
    while True:
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 3)) == 0:
            return holder, key
        holder = inner
        key = draw(
            st.sampled_from(list(inner)) if isinstance(inner, dict) else st.integers(0, len(inner) - 1)
        )


def _change(draw: st.DrawFn, holder: Any, key: Any) -> None:
    change = draw(st.sampled_from(["delete", "replace", "nest", "add", "near"]))
    old = holder[key]
    if change == "delete" and len(holder) > 1:
        del holder[key]
    elif change == "nest":
        holder[key] = draw(st.sampled_from([[old], {"a": old}]))
    elif change == "near" and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = draw(st.sampled_from([old + 1, old - 1, -old, old * 2, old * 1.0001]))
    elif change == "add" and isinstance(holder, dict):
        holder[draw(st.text(max_size=8) | st.sampled_from(list(holder)))] = draw(NONSENSE)
    elif change == "add":
        holder.insert(key, draw(NONSENSE | st.just(old)))
    else:
        holder[key] = draw(NONSENSE)
