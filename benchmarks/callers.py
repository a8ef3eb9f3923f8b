"""Clients that cost next to nothing: one connection each, one request after another."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fvit import demo

SAMPLES = sorted(demo.SAMPLES.glob("*.png"))


class Connection:
    """HTTP/1.1 to a port of this machine, kept alive, opened anew where it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(
        self, path: str, body: bytes, *, kind: str = "image/png", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """(status, body) of the answer."""
        reader = await self._send(path, body, {"Content-Type": kind, **(headers or {})}, length=len(body))
        status, found = await _head(reader)
        content = await reader.readexactly(int(found.get("content-length", "0")))
        if found.get("connection") == "close":
            self.close()
        return status, content

    async def lines(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        """The lines of an answer that is streamed; leaving closes the connection."""
        reader = await self._send(path, body, {"Accept": "application/x-ndjson"}, length=len(body))
        try:
            status, _ = await _head(reader)
            if status != 200:
                raise ConnectionError(f"status {status}")
            while size := int((await reader.readline()) or b"0", 16):
                chunk = await reader.readexactly(size + 2)
                yield chunk[:-2]
        finally:
            self.close()

    async def abandon(self, path: str, body: bytes, *, length: int, seconds: float) -> None:
        """Ask, saying that the body has another length than it has, wait a little and leave."""
        await self._send(path, body, {}, length=length)
        await asyncio.sleep(seconds)
        self.close()

    def close(self) -> None:
        """Leave, whatever is under way."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _send(
        self, path: str, body: bytes, headers: Mapping[str, str], *, length: int
    ) -> asyncio.StreamReader:
        if self._streams is None or self._streams[0].at_eof() or self._streams[1].is_closing():
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        reader, writer = self._streams
        fields = {"Host": "localhost", "Content-Type": "image/png", "Content-Length": str(length), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        await writer.drain()
        return reader


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(field.lower().split(": ", 1) for field in fields if field)
    return int(first.split()[1]), headers


def started(command: list[str]) -> tuple[subprocess.Popen[str], int]:
    """fvit-serve in a process of its own, and its port, once it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if (said := json.loads(line))["event"] == "ready":
            return process, int(said["address"].rpartition(":")[2])
    raise RuntimeError(f"{' '.join(command)} ended with {process.wait()}")


async def until(good: Callable[[], Any], *, seconds: float) -> None:
    """Call something again and again until it raises no OSError; after so many seconds it may."""
    end = time.monotonic() + seconds
    while True:
        try:
            await good()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.2)
