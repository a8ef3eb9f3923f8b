"""A disk that gets full: the system's own where one may be mounted, else its answer, from a library."""

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from tests.zygote import Zygote

SIZE = 64 << 20
"""Bytes of a disk that is mounted."""

NEW_MOUNTS, NEW_USERS, PRIVATE = 0x00020000, 0x10000000, 1 << 18 | 1 << 14
"""Linux's CLONE_NEWNS and CLONE_NEWUSER, and MS_PRIVATE with MS_REC."""


Start = Callable[..., Zygote]
"""Begins a zygote, with what Zygote takes besides."""


class Disk(Protocol):
    """Where runs of a zygote write to."""

    place: Path
    """Its folder, as they see it."""

    seen: Path
    """As this process sees it."""

    zygote: Zygote

    def leave(self, size: int | None) -> None:
        """So many bytes are free from now on; None: as many as there are."""


class Mounted:
    """A tmpfs that a zygote alone has, full but for what is to be left."""

    def __init__(self, place: Path, start: Start) -> None:
        """Raises SubprocessError where none may be mounted."""
        self.place = place
        self.zygote = start(prepare=lambda: mount(place))
        # A process that has the mount leads to it.
        self.seen = Path(f"/proc/{self.zygote.pid}/root{place}")

    def leave(self, size: int | None) -> None:
        ballast = self.seen / "ballast"
        ballast.unlink(missing_ok=True)
        if size is not None:
            free = os.statvfs(self.seen)
            with ballast.open("wb") as opened:
                os.posix_fallocate(opened.fileno(), 0, free.f_bavail * free.f_frsize - size)


class Counted:
    """A folder of which a library says that it is full (full_disk.c)."""

    def __init__(self, place: Path, start: Start) -> None:
        self.place = self.seen = place
        self._left = place.with_name("left")
        self._left.write_bytes(bytes(struct.calcsize("@l")))
        self.leave(None)
        library = built(place.parent)
        self.zygote = start(environment={"LD_PRELOAD": str(library), "FVIT_LEFT": str(self._left)})

    def leave(self, size: int | None) -> None:
        # In its place, which processes have mapped.
        with self._left.open("r+b") as opened:
            opened.write(struct.pack("@l", SIZE if size is None else size))


def disk_of(start: Start, *, folder: Path) -> Disk:
    """A disk and the zygote that has it, which `start` begins. Skips a test where neither a tmpfs may be
    mounted nor a library be built."""
    place = folder / "disk"
    place.mkdir()
    try:
        return Mounted(place, start)
    except subprocess.SubprocessError:
        return Counted(place, start)


def mount(place: Path) -> None:
    """In a new process: a tmpfs that only it and its children see. Who is not root is asked for no right
    where users may make namespaces. Raises OSError where it may not."""
    system = ctypes.CDLL(None, use_errno=True)

    def check(status: int) -> None:
        if status:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    user, group = os.geteuid(), os.getegid()
    check(system.unshare(NEW_MOUNTS | (NEW_USERS if user else 0)))
    if user:
        for name, text in (
            ("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")
        ):  # fmt: skip
            Path(f"/proc/self/{name}").write_text(text)
    check(system.mount(b"none", b"/", None, PRIVATE, None))
    check(system.mount(b"fvit", os.fsencode(place), b"tmpfs", 0, f"size={SIZE}".encode()))


def built(folder: Path) -> Path:
    """The library that stands for a full disk."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a full disk needs the right to mount one, or a C compiler")
    library, source = folder / "full_disk.so", Path(__file__).with_name("full_disk.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    return library
