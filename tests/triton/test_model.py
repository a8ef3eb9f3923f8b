"""A real server with the model: what it answers, over every way that Triton has."""

import base64
import json
import re
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image

import fvit
from fvit.certificates.verify import verify
from tests.triton.clients import Stream, generate, inputs, record
from tests.triton.conftest import PLAIN
from tests.triton.server import ENVIRONMENT, LIMIT, Triton


def test_a_prediction_is_the_library_s_to_the_bit(
    stream: Stream, vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    found = stream.ask(image=samples[0].read_bytes(), task="predict", n=20, sigma=0.5, alpha=0.01, seed=7)
    expected = vit.predict(samples[0], n=20, sigma=0.5, alpha=0.01, seed=7)
    assert found["index"].tolist() == [expected.index]
    assert found["label"].tolist() == [str(expected.label).encode()]
    assert np.array_equal(found["counts"], expected.counts)
    assert np.array_equal(found["attention"], expected.attention)
    assert found["seed"].tolist() == [7]
    assert not {"radii", "tokens", "record"} & found.keys()


def test_an_abstention_has_no_class(stream: Stream) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = stream.ask(pixels=pixels, task="predict", n=11, sigma=1.0, seed=3)
    assert (found["index"].tolist(), found["label"].tolist()) == ([-1], [b""])
    assert found["counts"].sum() == 11


CERTIFIED: list[dict[str, Any]] = [
    {"n": 60},
    {"n": 60, "k": [5, 12], "beta": 0.6, "sigma": 0.12},
    {"n": 300, "radius": 0.01},
    {"n": 100, "aggregate": "mean", "alpha": 0.1},
]
REFINED: dict[str, Any] = {"n": 60}
SEED = 2**64 - 1

BY_LIBRARY = """
import json, sys, fvit
bundle, image, certified, refined = json.load(sys.stdin)
with fvit.load(bundle) as vit:
    found = [vit.certify(image, **terms) for terms in certified]
    *_, last = vit.refine(image, **refined)
print(json.dumps([each.to_dict() for each in (*found, last)]))
"""


@pytest.fixture(scope="module")
def of_library(repository: Path, demo_bundle: Path, samples: list[Path]) -> list[dict[str, Any]]:
    """Records of CERTIFIED and of REFINED by the library, in the server's environment: the last digit of a
    radius depends on NumPy's version."""
    seeded = [terms | {"seed": SEED} for terms in (*CERTIFIED, REFINED)]
    asked = json.dumps([str(demo_bundle), str(samples[1]), seeded[:-1], seeded[-1]])
    python = ENVIRONMENT / "bin" / "python"
    done = subprocess.run(
        [python, "-c", BY_LIBRARY], input=asked, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def less_what_varies(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what is of the run, or names the image."""
    return {name: value for name, value in record.items() if name not in ("seconds", "image")}


@pytest.mark.parametrize("case", range(len(CERTIFIED)))
def test_a_certificate_is_the_library_s_to_the_bit(
    stream: Stream, of_library: list[dict[str, Any]], samples: list[Path], case: int
) -> None:
    found = stream.ask(image=samples[1].read_bytes(), seed=SEED, **CERTIFIED[case])
    expected = of_library[case]
    assert less_what_varies(record(found)) == less_what_varies(expected)
    assert found["index"].tolist() == [expected["class"]["index"]]
    assert found["radii"].tolist() == [expected["class"]["radius_l2"], expected["attention"]["radius_l2"]]
    assert found["tokens"].tolist() == expected["attention"]["tokens"]
    assert found["counts"].sum() == expected["copies"]
    assert list(found["attention"].shape) == expected["attention"]["grid"]
    assert found["attention"].sum() == pytest.approx(1)


def test_a_refinement_streams_and_ends_with_all_copies(
    stream: Stream, of_library: list[dict[str, Any]], samples: list[Path]
) -> None:
    records = list(
        map(record, stream.all(image=samples[1].read_bytes(), task="refine", seed=SEED, **REFINED))
    )
    assert len(records) > 3
    assert all(not verify(each) for each in records)
    copies = [each["copies"] for each in records]
    assert copies == sorted(copies) and copies[-1] == 60
    assert less_what_varies(records[-1]) == less_what_varies(of_library[-1])


def test_a_file_its_pixels_and_base64_are_one_image(
    triton: Triton, stream: Stream, samples: list[Path]
) -> None:
    content = samples[3].read_bytes()
    of_file = stream.ask(image=content, n=40, seed=1)
    of_pixels = stream.ask(pixels=np.asarray(Image.open(samples[3]).convert("RGB")), n=40, seed=1)
    status, body = generate(triton, image=base64.b64encode(content).decode(), n=40, seed=1)
    assert status == 200
    of_base64 = json.loads(body)
    assert np.array_equal(of_file["counts"], of_pixels["counts"])
    assert of_base64["counts"] == of_file["counts"].tolist()
    hashes = [json.loads(each)["sha256"] for each in (of_file["record"].item(), of_base64["record"])]
    assert hashes[0] == hashes[1] == record(of_file)["sha256"]


def test_who_asks_for_some_outputs_gets_those(stream: Stream, samples: list[Path]) -> None:
    wanted = [grpc.InferRequestedOutput(name) for name in ("radii", "label")]
    stream.begin(inputs(image=samples[0].read_bytes(), n=40), outputs=wanted)
    outputs, _ = stream.hear()
    assert outputs.keys() == {"radii", "label"}


def test_a_short_request_overtakes_a_long_one(triton: Triton, samples: list[Path]) -> None:
    with Stream(triton) as long, Stream(triton) as short:
        long.begin(inputs(image=samples[0].read_bytes(), n=20_000))
        triton.until("fvit_rows_waiting", lambda waiting: waiting > 1000)
        assert short.ask(image=samples[1].read_bytes(), task="predict", n=12)["counts"].sum() == 12
        assert triton.metric("fvit_rows_waiting") > 1000


@pytest.mark.parametrize("task", ["certify", "refine"])
def test_a_request_that_its_client_cancels_frees_its_rows(
    triton: Triton, samples: list[Path], task: str
) -> None:
    with Stream(triton) as stream:
        stream.begin(inputs(image=samples[0].read_bytes(), task=task, n=20_000))
        if task == "refine":
            stream.hear()
        else:
            triton.until("fvit_rows_waiting", lambda waiting: waiting > 1000)
    triton.until_idle()
    done = triton.metric("fvit_copies_total")
    with Stream(triton) as stream:
        stream.ask(image=samples[1].read_bytes(), task="predict", n=12)
    triton.until("fvit_copies_total", lambda copies: copies >= done + 12)
    assert triton.metric("fvit_copies_total") <= done + 12 + 8 * triton.metric("fvit_devices")


def test_a_client_over_http_that_leaves_a_stream_frees_its_rows(triton: Triton, samples: list[Path]) -> None:
    image = base64.b64encode(samples[0].read_bytes()).decode()
    body = json.dumps({"image": image, "task": "refine"}).encode()
    head = f"POST /v2/models/fvit/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", triton.http), LIMIT) as connection:
        connection.sendall(head.encode() + body)
        assert b"200 OK" in connection.recv(100)
    with Stream(triton) as stream:
        stream.ask(image=samples[1].read_bytes(), task="predict", n=12)
    triton.until_idle()


def test_generate_streams_server_sent_events(triton: Triton, samples: list[Path]) -> None:
    image = base64.b64encode(samples[0].read_bytes()).decode()
    status, body = generate(triton, stream=True, image=image, task="refine", n=40, seed=2)
    events = [json.loads(line) for line in re.findall(r"^data: (.*)$", body, re.M)]
    assert status == 200
    assert json.loads(events[-1]["record"])["copies"] == 40


def test_plain_infer_takes_requests_of_one_response(
    triton: Triton, vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    """Over both protocols, several at once, with the classes by name that most copies have."""
    content = samples[0].read_bytes()
    expected = vit.predict(samples[0], n=20, seed=1)
    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    found: list[list[int]] = []

    def ask() -> None:
        tensors = inputs(image=content, task="predict", n=20, seed=1)
        found.append(client.infer(PLAIN, tensors).as_numpy("counts").tolist())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert found == [expected.counts.tolist()] * 4
    image = http.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([content], np.object_))
    n = http.InferInput("n", [1], "INT64")
    n.set_data_from_numpy(np.array([100]))
    leading = http.InferRequestedOutput("counts", class_count=1)
    with http.InferenceServerClient(f"127.0.0.1:{triton.http}", network_timeout=LIMIT) as over_http:
        answer = over_http.infer(PLAIN, [image, n], outputs=[leading])
    copies, index, label = answer.as_numpy("counts")[0].decode().split(":")
    assert (float(copies) > 50, index, label) == (True, str(expected.index), expected.label)


def test_a_refinement_needs_a_model_that_streams(triton: Triton, samples: list[Path]) -> None:
    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    with pytest.raises(grpc.InferenceServerException, match="let it say  decoupled: true"):
        client.infer(PLAIN, inputs(image=samples[0].read_bytes(), task="refine"))


def test_a_plain_request_that_is_cancelled_frees_its_rows(triton: Triton, samples: list[Path]) -> None:
    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    call = client.async_infer(
        PLAIN, inputs(image=samples[0].read_bytes(), n=20_000), lambda result, error: None
    )
    triton.until("fvit_rows_waiting", lambda waiting: waiting > 1000, model=PLAIN)
    call.cancel()
    triton.until_idle(model=PLAIN)
