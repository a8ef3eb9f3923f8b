"""Whether the server that runs a model has begun to end, which it does not say."""

from __future__ import annotations

import argparse
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

PATIENCE = 2.0
"""Seconds in which a server says that it lives."""

ANY = ("0.0.0.0", "::")

ENDING = (400, 503)
"""What a server answers that does not live; others keep who asks from knowing."""

DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Through no proxy that the environment names."""


class Server:
    """Asked over HTTP, as a load balancer asks. Triton's own pb_utils.is_model_ready raises once the server
    ends, and that has ended one model's process in ten with a fault in its shared memory (2.51)."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._lived = self._missed = False

    @classmethod
    def of(cls, process: int) -> Server:
        """The server that is this process."""
        told = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
        return cls(health(told.split("\0")[1:]))

    def ends(self, *, asks: bool) -> bool:
        """Whether it lived once and has not done so at two looks; False where it cannot be asked.

        asks: it has passed requests on, so it lives or has lived, but it opens one port after the other.
        """
        if self._address is None:
            return False
        missed, self._missed = self._missed, not _lives(self._address)
        self._lived |= asks or not self._missed
        return self._lived and self._missed and missed


def health(options: Sequence[str]) -> str | None:
    """Where a tritonserver with these options says that it lives; None where it has no HTTP."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--allow-http", default="true")
    parser.add_argument("--http-port", default="8000")
    parser.add_argument("--http-address", default=ANY[0])
    told, _ = parser.parse_known_args(options)
    if told.allow_http.lower() not in ("true", "1", "on"):
        return None
    host = "127.0.0.1" if told.http_address in ANY else told.http_address
    return f"http://{f'[{host}]' if ':' in host else host}:{told.http_port}/v2/health/live"


def _lives(address: str) -> bool:
    try:
        with DIRECTLY.open(address, timeout=PATIENCE):
            return True
    except HTTPError as error:
        return error.code not in ENDING
    except (OSError, HTTPException) as error:
        # It may have too much to do to answer in time.
        return not isinstance(getattr(error, "reason", None), ConnectionRefusedError)
