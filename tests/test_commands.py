"""What all commands share."""

import subprocess
import sys

import pytest

from tests.commands import WAITS

IN_A_DESTRUCTOR = """
import signal, sys, time, types
from fvit import commands

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has none

class Ending:
    def __del__(self):
        signal.raise_signal({number})
        sum(range(10))

def app(standalone_mode):
    Ending()
    while True:
        time.sleep(1)

sys.modules["work"] = types.SimpleNamespace(app=app)
commands.run("work")
"""


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143)])
def test_an_interruption_that_python_ignores_comes_again(number: int, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_DESTRUCTOR.format(number=number)],
        capture_output=True, text=True, timeout=WAITS, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (status, "interrupted\n")
