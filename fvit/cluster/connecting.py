"""Ray, and the cluster that a run connects to or starts."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fvit.errors import FvitError
from fvit.extras import require
from fvit.runtime.images import reason_of

LOCAL = "local"
"""The address of a cluster of this run's own."""

STORE = 1 << 28
"""Bytes of shared memory of a cluster of this run's own: its machine shares a disk."""

ANSWERS = 10.0
"""Seconds in which a cluster takes a connection."""

QUIET = {"log_to_driver": False, "logging_level": logging.CRITICAL}


ADDRESS = re.compile(r"auto|local|[^\s/]+:\d+")


def check_address(address: str | None) -> None:
    """Raise FvitError for what is no address of a cluster."""
    if address is not None and not ADDRESS.fullmatch(address):
        raise FvitError(
            f"--ray {address}: no address of a cluster, which is host:port, auto or {LOCAL}; the command "
            "runs on a node of it"
        )


def ray_module() -> Any:
    """Ray; raises MissingExtra where it is not installed."""
    return require("ray", extra="ray", purpose="--ray")


@contextmanager
def connected(address: str | None) -> Iterator[str | None]:
    """Until the block ends Ray's calls are the cluster's at this address: host:port of it, None where it is
    this run's own.

    None: the cluster that RAY_ADDRESS names or that was started on this machine last; where there is none,
    and for "local", one of this run's own, which ends with it. Raises FvitError where none answers.
    """
    ray = ray_module()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        found = _found(ray, address)
        # What Ray prints of workers that end is said by this run, in its own words.
        ray._private.worker._worker_logs_enabled = False
        if found is None:
            cores = len(os.sched_getaffinity(0))
            ray.init(
                LOCAL, num_cpus=cores, object_store_memory=STORE, include_dashboard=False, **QUIET
            )  # fmt: skip
        else:
            ray.init(found, **QUIET)
    except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        ray.shutdown()
        where, reason = "" if address is None else f" at {address}", reason_of(error).split(". ")[0]
        raise FvitError(
            f"no Ray cluster answers{where} ({reason}): start one with  ray start --head , or one for this "
            f"run alone with  --ray {LOCAL}"
        ) from error
    finally:
        for number, handler in handlers.items():  # Ray takes SIGTERM for itself
            signal.signal(number, handler)
    try:
        yield found
    finally:
        ray.shutdown()


def _found(ray: Any, address: str | None) -> str | None:
    """host:port of the cluster, or None where this run is to have its own. Raises OSError where nothing
    listens: Ray itself would try for minutes."""
    found: str | None = ray._private.services.canonicalize_bootstrap_address(address)
    if found is None:
        return None
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS).close()
    except OSError:
        if address is not None or "RAY_ADDRESS" in os.environ:
            raise
        return None  # what was started last has ended
    return found
