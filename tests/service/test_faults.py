"""What clients, images, engines and signals do wrong: an answer that says so, and nothing else suffers."""

import base64
import io
import json
import resource
import signal
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service.conftest import LIMIT, Serving, problem
from tests.service.faulty import FAILS_ONCE, LOSES_THE_DEVICE


def png(grey: int, *, side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), grey, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def huge_png(columns: int, rows: int) -> bytes:
    """A small file that would decode to columns×rows×3 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 10**6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def raw(service: Serving, *parts: bytes) -> bytes:
    """What a server answers to bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", service.port), LIMIT) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        while data := connection.recv(1 << 16):
            answer += data
        return answer


def idle(service: Serving) -> None:
    """Nothing waits and nobody else is answered."""
    service.until("fvit_rows_waiting", lambda waiting: waiting == 0)
    service.until("fvit_requests_open", lambda open_: open_ == 1)


@pytest.mark.parametrize("path", ["/v1/certify?n=20000", "/v1/refine"])
def test_a_client_that_leaves_frees_its_rows(service: Serving, samples: list[Path], path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {samples[0].stat().st_size}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), LIMIT) as connection:
        connection.sendall(head.encode() + samples[0].read_bytes())
        if path == "/v1/refine":
            assert b"certificate" in connection.recv(1 << 20) + connection.recv(1 << 20)
        else:
            service.until("fvit_rows_waiting", lambda waiting: waiting > 1000)
    idle(service)
    done = service.metric("fvit_copies_total")
    assert service.client.post("/v1/predict?n=12", content=samples[1].read_bytes()).status_code == 200
    assert service.metric("fvit_copies_total") <= done + 12 + 8 * service.metric("fvit_devices")
    line = service.wait_for(lambda line: line.get("status") == 499 and line["endpoint"] in path)
    assert line["n"] == 20_000


def test_an_engine_that_fails_once_is_a_503_for_its_requests_and_no_other(
    faulty: Serving, samples: list[Path]
) -> None:
    answer = faulty.client.post("/v1/predict?n=12", content=png(FAILS_ONCE))
    problem(answer, 503, "engine-failed")
    assert answer.headers["retry-after"] == "1"
    for content in (png(FAILS_ONCE), samples[0].read_bytes()):
        assert faulty.client.post("/v1/predict?n=12", content=content).status_code == 200
    assert faulty.client.get("/readyz").json()["ready"] is True


def test_devices_that_are_lost_show_until_none_is_left(serve: Callable[..., Serving]) -> None:
    service = serve(program=Path(__file__).parent / "faulty.py")
    ready = service.client.get("/readyz").json()["models"]["demo"]
    answer = service.client.post("/v1/predict?n=12", content=png(LOSES_THE_DEVICE))
    problem(answer, 503, "engine-failed")  # it took every device with it
    answer = service.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {
        "ready": False, "models": {"demo": {"devices": 0, "of": ready["of"], "waiting": 0}},
    }  # fmt: skip
    assert service.metric("fvit_devices") == 0
    problem(service.client.post("/v1/predict?n=12", content=png(9)), 503, "engine-failed")
    assert service.stop() == 0


def test_sigterm_under_load_finishes_what_runs_and_refuses_the_rest(
    serve: Callable[..., Serving], samples: list[Path]
) -> None:
    service = serve("--drain", str(LIMIT))
    with ThreadPoolExecutor(4) as pool:
        running = [
            pool.submit(service.client.post, "/v1/predict", params={"n": 400}, content=sample.read_bytes())
            for sample in samples[:4]
        ]
        service.until("fvit_rows_waiting", lambda waiting: waiting > 100)
        service.process.send_signal(signal.SIGTERM)
        service.wait_for(lambda line: line["event"] == "stopping")
        refused = httpx.post(f"{service.address}/v1/predict", content=samples[0].read_bytes())
        problem(refused, 503, "stopping")
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(f"{service.address}/readyz").status_code == 503
        assert httpx.get(f"{service.address}/healthz").status_code == 200
        assert [each.result().status_code for each in running] == [200] * 4
    assert service.process.wait(LIMIT) == 0


def test_what_is_not_done_when_draining_ends_is_told(
    serve: Callable[..., Serving], samples: list[Path]
) -> None:
    service = serve("--drain", "0")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(service.client.post, "/v1/certify?n=50000", content=samples[0].read_bytes())
        with service.client.stream("POST", "/v1/refine", content=samples[1].read_bytes()) as streamed:
            lines = streamed.iter_lines()
            assert next(lines) == "event: certificate"
            assert service.stop() == 0
            assert "event: problem" in list(lines)
        problem(running.result(), 503, "stopping")


def test_a_killed_service_starts_again_at_its_port(
    serve: Callable[..., Serving], samples: list[Path]
) -> None:
    service = serve()
    with service.client.stream("POST", "/v1/refine", content=samples[0].read_bytes()) as streamed:
        assert next(streamed.iter_lines()) == "event: certificate"
        service.stop(signal.SIGKILL)
    again = serve("--port", str(service.port))
    assert again.client.post("/v1/predict?n=12", content=samples[0].read_bytes()).status_code == 200


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome", b" 408 "),
        (b"POST /v1/predict HTTP/1.1\r\nHost", b""),
        (b"", b""),
        (b"nonsense\r\n\r\n", b" 400 "),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\nContent-Length: -1\r\n\r\n", b" 400 "),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 10**6 + b"\r\n\r\n", b""),
    ],
)
def test_a_slow_silent_or_senseless_sender_is_let_go(faulty: Serving, sent: bytes, said: bytes) -> None:
    try:
        answer = raw(faulty, sent)
    except ConnectionError:
        answer = b""
    assert said in answer
    assert not said or b"application/problem+json" in answer
    assert faulty.client.get("/healthz").status_code == 200


def test_a_body_of_a_gigabyte_is_refused_before_it_is_read(service: Serving) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1073741824\r\n\r\n"
    assert b" 413 " in raw(service, head)

    def endless() -> Iterator[bytes]:
        for _ in range(1024):
            yield bytes(1 << 20)

    try:
        answer = service.client.post("/v1/predict", content=endless())
    except httpx.TransportError:  # it was not read to its end
        answer = service.client.post("/v1/predict", content=bytes(2 << 20))
    problem(answer, 413, "too-large")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(service: Serving) -> None:
    before = service.metric("process_resident_memory_bytes")
    for columns, rows in ((20_000, 20_000), (5_000, 3_201), (2**31 - 1, 2**31 - 1)):
        answer = service.client.post("/v1/predict?n=12", content=huge_png(columns, rows))
        problem(answer, 422, "invalid-image")
    assert service.metric("process_resident_memory_bytes") < before + 50e6


def test_images_that_are_none_are_refused(service: Serving, samples: list[Path]) -> None:
    whole = samples[0].read_bytes()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n"
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    for content in (
        b"",
        b"\0" * 5000,
        whole[: len(whole) // 2],
        whole[:40],
        b"GIF89a" + b"\xff" * 50,
        eps,
        svg,
    ):
        problem(service.client.post("/v1/predict?n=12", content=content), 422, "invalid-image")
    rng = np.random.default_rng(0)
    for _ in range(30):
        spoilt = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            spoilt[place] = int(rng.integers(0, 256))
        answer = service.client.post("/v1/predict?n=12", content=bytes(spoilt))
        if answer.status_code != 200:  # what was spoilt may be nothing that is read
            problem(answer, 422, "invalid-image")


@pytest.mark.parametrize(
    "body",
    [b"{", b"[" * 100_000, b"null", b"{}", b'{"image": 1}', b'{"image": "***"}', b'{"image": "AA==", "n": 5}',
     b'{"image": NaN}', b"\xff\xfe", b'{"image": "' + base64.b64encode(b"no image") + b'"}'],
)  # fmt: skip
def test_malformed_json_is_refused(service: Serving, body: bytes) -> None:
    answer = service.client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    problem(answer, 422, "invalid-image" if b"bm8g" in body else "invalid-request")
    if b"AA==" not in body and b"bm8g" not in body:
        answer = service.client.post("/v1/verify", content=body)
        assert answer.status_code in (200, 422)


@pytest.mark.parametrize(
    "body", [b"", b"--b\r\n", b"--b\r\n\r\nx\r\n--b--\r\n", b"--b--", b"\r\n" * 100, b"--b" * 1000]
)
def test_malformed_forms_are_refused(service: Serving, body: bytes) -> None:
    for kind in ("multipart/form-data; boundary=b", "multipart/form-data"):
        answer = service.client.post("/v1/predict", content=body, headers={"Content-Type": kind})
        problem(answer, 422, "invalid-request")


def test_hostile_records_are_judged_in_time(service: Serving, samples: list[Path]) -> None:
    record = service.client.post("/v1/certify?n=40", content=samples[0].read_bytes()).json()
    record["attention"]["votes"] = list(range(40_000))
    record["attention"]["sums"] = [1] * 40_000
    record["attention"]["grid"] = [200, 200]
    assert service.client.post("/v1/verify", json=record).json()["follows"] is False
    record["image"] = "x" * (1 << 20)
    problem(service.client.post("/v1/verify", content=json.dumps(record)), 413, "too-large")


@pytest.mark.parametrize(
    "path",
    ["/../../../etc/passwd", "/samples/..%2f..%2fdata.py", "/samples/%00", "//etc/passwd", "/page.js/../x",
     "/samples/../../../../fvit.json", "/%2e%2e/%2e%2e/etc/passwd", "/samples/"],
)  # fmt: skip
def test_paths_reach_nothing_but_the_page(service: Serving, path: str) -> None:
    answer = raw(service, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"urn:fvit:not-found" in answer


def test_thousands_of_silent_connections_are_borne_and_closed(faulty: Serving, samples: list[Path]) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    many = 3000 if most == resource.RLIM_INFINITY or most > 4000 else most // 2
    before = faulty.metric("process_open_fds")
    with ExitStack() as stack:
        for _ in range(many):
            stack.enter_context(socket.create_connection(("127.0.0.1", faulty.port), LIMIT))
        answer = faulty.client.post("/v1/predict?n=12", content=samples[0].read_bytes())
        assert answer.status_code == 200
        faulty.until("process_open_fds", lambda now: now < before + 20)


def test_a_stream_says_that_it_lives(faulty: Serving, samples: list[Path]) -> None:
    """Looks of a long refinement lie further apart than the beat of this server, or the machine is slow."""
    with faulty.client.stream(
        "POST", "/v1/refine?n=2000&seconds=60", content=samples[0].read_bytes()
    ) as streamed:
        assert any(line.startswith(":") for line in streamed.iter_lines())
    idle(faulty)
