"""Clients that cost next to nothing: one connection each, one request after another."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import fvit

SAMPLES = sorted((Path(fvit.__file__).parent / "demo" / "samples").glob("*.png"))


class Connection:
    """HTTP/1.1 to a port of this machine, kept alive, opened anew where it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, *, kind: str = "image/png") -> tuple[int, bytes]:
        """(status, body) of the answer."""
        reader, status, headers = await self._begin(path, body, kind=kind, accept="*/*")
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            self.close()
        return status, content

    async def lines(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        """The lines of an answer that is streamed; leaving closes the connection."""
        reader, status, _ = await self._begin(path, body, kind="image/png", accept="application/x-ndjson")
        try:
            if status != 200:
                raise ConnectionError(f"status {status}")
            while size := int((await reader.readline()) or b"0", 16):
                chunk = await reader.readexactly(size + 2)
                yield chunk[:-2]
        finally:
            self.close()

    def close(self) -> None:
        """Leave, whatever is under way."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _begin(
        self, path: str, body: bytes, *, kind: str, accept: str
    ) -> tuple[asyncio.StreamReader, int, dict[str, str]]:
        if self._streams is None or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        reader, writer = self._streams
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nAccept: {accept}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        first, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(field.lower().split(": ", 1) for field in fields if field)
        return reader, int(first.split()[1]), headers


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
