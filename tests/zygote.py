"""A process that has imported what takes long and forks off runs of a command, so that each takes little.

Run as `python -m tests.zygote COMMAND MODULE…` it imports the modules and reads one JSON object a line.
{"arguments": […], "out": file, "err": file, "largest_file": bytes, or null} starts a run and answers with its
process id; {"wait": process id} answers with its exit status, negative for a signal.
"""

import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvit import commands
from tests.commands import WAITS


@dataclass
class Run:
    """A run of a command that was forked off."""

    zygote: "Zygote"
    process: int
    streams: tuple[Path, Path]

    def pause(self, seconds: float) -> bool:
        """Wait for so many seconds, or until it has ended; whether it goes on."""
        opened = os.pidfd_open(self.process)
        ready, _, _ = select.select([opened], [], [], seconds)
        os.close(opened)
        return not ready

    def end(self) -> int:
        """Its exit status, negative for a signal."""
        return self.zygote.ask(wait=self.process)

    @property
    def stderr(self) -> str:
        return self.streams[1].read_text()


class Zygote:
    """Forks off runs of fvit-`command`. modules: imported first; what does not survive a fork, as ONNX
    Runtime, is not to be among what they import. folder: for what runs say. prepare: called in the new
    process before Python begins. Raises SubprocessError where that fails."""

    def __init__(
        self, command: str, *modules: str, folder: Path, prepare: Callable[[], Any] = lambda: None,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", command, *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=prepare,
            cwd=Path(__file__).parents[1], env={**os.environ, "COLUMNS": "200", **(environment or {})},
        )  # fmt: skip
        self.pid = self._process.pid

    def ask(self, **asked: Any) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], WAITS)
        assert ready, f"hangs: {asked}"
        return int(self._process.stdout.readline())

    def start(self, *arguments: object, largest_file: int | None = None) -> Run:
        self._count += 1
        streams = (self._folder / f"{self._count}.out", self._folder / f"{self._count}.err")
        out, err = map(str, streams)
        process = self.ask(arguments=[*map(str, arguments)], out=out, err=err, largest_file=largest_file)
        return Run(self, process, streams)

    def close(self) -> None:
        self._process.kill()  # to tidy up what it has imported takes it seconds
        self._process.communicate()


def become(command: str, asked: dict[str, Any]) -> None:
    """In the forked child: become fvit-`command`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number, file in ((1, asked["out"]), (2, asked["err"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if (largest := asked["largest_file"]) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = [f"fvit-{command}", *asked["arguments"]]
    getattr(commands, command)()


def main(command: str, *modules: str) -> None:
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        elif (process := os.fork()) == 0:
            become(command, asked)
        else:
            print(process, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
