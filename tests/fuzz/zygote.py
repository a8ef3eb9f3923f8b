"""A process that has imported what takes long and forks off runs of fvit-certify, so that each takes little.

Reads one JSON object a line. {"arguments": […], "out": file, "err": file, "largest_file": bytes, or null}
starts a run and answers with its process id; {"wait": process id} answers with its exit
status, negative for a signal.
"""

import importlib
import json
import os
import resource
import signal
import sys
from typing import Any

from fvit import commands

# Not ONNX Runtime, which does not survive a fork.
for module in ("fvit.runtime.cli", "fvit.runtime.pictures", "matplotlib.backends.backend_agg"):
    importlib.import_module(module)


def run(asked: dict[str, Any]) -> None:
    """In the forked child: become fvit-certify."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number, file in ((1, asked["out"]), (2, asked["err"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if (largest := asked["largest_file"]) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = ["fvit-certify", *asked["arguments"]]
    commands.certify()


for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        _, status = os.waitpid(asked["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    elif (process := os.fork()) == 0:
        run(asked)
    else:
        print(process, flush=True)
