"""A server and its models from load to shutdown: nothing is left of them, whatever runs."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from tests.triton.clients import Stream, inputs
from tests.triton.server import LIMIT, Triton

Start = Callable[..., Triton]


@pytest.fixture
def start(repository: Path) -> Iterator[Start]:
    """Starts servers of which none outlives its test."""
    with ExitStack() as stack:

        def started(*options: str) -> Triton:
            server = Triton(repository, "--model-control-mode=explicit", "--load-model=fvit", *options)
            stack.callback(server.process.wait)
            stack.callback(server.process.kill)
            return server

        yield started


def test_models_that_come_and_go_leave_nothing(start: Start, samples: list[Path]) -> None:
    server = start()
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    seen = []
    for cycle in range(3):
        if cycle:
            client.load_model("fvit")
        with Stream(server) as stream:
            stream.ask(image=samples[0].read_bytes(), task="predict", n=12)
            stream.begin(inputs(image=samples[0].read_bytes(), task="refine"))
            stream.hear()
        client.unload_model("fvit")
        server.until_no_model()
        assert not client.is_model_ready("fvit")
        seen.append(server.left())
    assert seen[-1] == seen[0] | {"models": 0, "regions": 0}
    assert server.stop() == 0
    assert server.regions == []


def test_a_model_that_is_unloaded_answers_what_it_had_begun(start: Start, samples: list[Path]) -> None:
    server = start()
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    with Stream(server) as stream:
        stream.begin(inputs(image=samples[0].read_bytes(), n=300))
        server.until("fvit_rows_waiting", lambda waiting: waiting > 100)
        client.unload_model("fvit")
        outputs, _ = stream.hear()
        assert json.loads(outputs["record"].item())["copies"] == 300
    server.until_no_model()
    assert server.stop() == 0


def test_a_server_that_ends_under_load_tells_what_still_runs(start: Start, samples: list[Path]) -> None:
    """After the model's time to drain, and before the server loses its patience."""
    server = start()
    with Stream(server) as stream:
        stream.begin(inputs(image=samples[0].read_bytes(), n=50_000))
        server.until("fvit_rows_waiting", lambda waiting: waiting > 1000)
        server.process.terminate()
        with pytest.raises(InferenceServerException, match="this service is stopping"):
            stream.hear()
    assert server.process.wait(LIMIT) == 0
    assert server.regions == []


def test_a_server_that_is_killed_leaves_no_process(start: Start, samples: list[Path]) -> None:
    server = start()
    [model] = server.models
    with Stream(server) as stream:
        stream.begin(inputs(image=samples[0].read_bytes(), n=50_000))
        server.until("fvit_rows_waiting", lambda waiting: waiting > 1000)
        server.stop(signal.SIGKILL)
    code = "import os, sys\nwhile os.path.exists(f'/proc/{sys.argv[1]}'): pass"
    subprocess.run([sys.executable, "-c", code, str(model)], timeout=LIMIT, check=True)
    assert server.regions == []


def test_a_bundle_that_was_changed_is_said_and_not_served(start: Start, repository: Path) -> None:
    graph = repository / "plain" / "1" / "bundle" / "denoiser.onnx"
    content = graph.read_bytes()
    server = start()
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    try:
        graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(grpc.InferenceServerException, match=r"denoiser\.onnx was changed"):
            client.load_model("plain")
    finally:
        graph.write_bytes(content)
    assert client.is_model_ready("fvit")
    assert server.stop() == 0
