"""A model sees that its server ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fvit.triton.server import Server, health
from tests.triton.server import free_ports


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ("", "http://127.0.0.1:8000"),
        ("--model-repository=models --http-port=81 --http-address=10.0.0.5", "http://10.0.0.5:81"),
        ("--http-port 81 --http-address ::", "http://127.0.0.1:81"),
        ("--http-address=::1", "http://[::1]:8000"),
        ("--http-port=81 --http-port=82", "http://127.0.0.1:82"),
    ],
)
def test_where_a_server_is_asked_follows_from_its_options(options: str, address: str) -> None:
    assert health(options.split()) == f"{address}/v2/health/live"


@pytest.mark.parametrize("value", ["false", "False", "0", "off"])
def test_a_server_without_http_cannot_be_asked(value: str) -> None:
    assert health([f"--allow-http={value}"]) is None
    assert not Server(None).ends(asks=True)


class Answers(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_ends_when_it_lived_and_does_not_say_so_any_more(
    answering: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # is not asked
    server = Server(health([f"--http-port={answering.server_port}"]))
    assert not server.ends(asks=False)
    monkeypatch.setattr(Answers, "status", 400)
    assert [server.ends(asks=False) for _ in range(3)] == [False, True, True]


def test_a_server_that_does_not_say_goes_on(answering: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "status", 403)  # --http-restricted-api
    server = Server(health([f"--http-port={answering.server_port}"]))
    assert not any(server.ends(asks=True) for _ in range(3))


def test_a_server_is_not_up_before_it_answers_or_asks() -> None:
    [port] = free_ports(1)
    server = Server(health([f"--http-port={port}"]))
    assert not any(server.ends(asks=False) for _ in range(3))
    assert server.ends(asks=True)
    assert [Server(health([f"--http-port={port}"])).ends(asks=True) for _ in range(2)] == [False, False]
