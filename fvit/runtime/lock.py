"""A folder that belongs to one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
from pathlib import Path

from fvit.errors import FvitError


class Lock:
    """Hold a folder by a lock file in it, until `close` or until this process ends, however it ends.

    The system lets the lock go with its process, so a file that a killed one left behind locks nothing.
    Raises FvitError, with the process that holds the folder, where another one does; OSError where the
    file cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        holder = None
        for _ in range(100):
            self._lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            try:
                if self._take():
                    return
                holder = _holder(self._lock)
            except BaseException:
                os.close(self._lock)
                raise
            os.close(self._lock)
            if holder is not None:
                break
            time.sleep(0.01)
        holder = holder or "another process"
        raise FvitError(f"{file.parent} is in use by {holder}: wait for it or choose another --out")

    def close(self) -> None:
        """Let another process have the folder. Once."""
        # Removed while it is held: who has opened it and gets the lock then sees that it is gone. A folder
        # that has become read-only keeps it, which does no harm.
        with contextlib.suppress(OSError):
            if lies_at(self._lock, self._file):
                self._file.unlink()
        os.close(self._lock)

    def _take(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not lies_at(self._lock, self._file):
            return False
        try:
            os.ftruncate(self._lock, 0)
            os.write(self._lock, f"{os.getpid()} {socket.gethostname()}\n".encode())
        except OSError:  # a full disk, where nothing is to be left behind
            self._file.unlink()
            raise
        return True


def lies_at(file: int, path: Path) -> bool:
    """Whether an opened file is still what its path leads to."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _holder(lock: int) -> str | None:
    """Who holds the lock; None while that is not written there yet, or is still a process that has ended."""
    found = re.fullmatch(rb"(\d{1,9}) (\S+)\n", os.pread(lock, 200, 0))
    if found is None:
        return None
    process, host = int(found[1]), found[2].decode(errors="replace")
    if host != socket.gethostname():
        return f"process {process} on {host}"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # another person's process
        pass
    return f"process {process}"
