"""Who may ask: a file of salted hashes of keys, read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fvit.errors import FvitError
from fvit.runtime.inputs import open_plain

LINE = re.compile(r"([A-Za-z0-9_.-]{1,64}) ([0-9a-f]{32}) ([0-9a-f]{64})")


def new_key(file: Path, *, name: str) -> str:
    """A new key, whose hash is added to the file, which is made where there is none.

    A key is 256 random bits: its salted SHA-256 needs no stretching. Raises FvitError for a name that is no
    plain word or is taken, and where the file cannot be written or is no file of keys.
    """
    if not LINE.fullmatch(f"{name} {'0' * 32} {'0' * 64}"):
        raise FvitError(f"'{name}' is no name for a key: use up to 64 letters, digits, '_', '.' or '-'")
    key, salt = secrets.token_urlsafe(32), secrets.token_bytes(16)
    try:
        if file.exists() and not file.is_file():  # a device forgets it
            raise FvitError(f"{file} is no regular file, where a key can be kept: name another")
        if file.exists() and name in {entry[0] for entry in _read(file)}:
            raise FvitError(f"{file} has a key named {name}: choose another name, or take its line out first")
        file.touch(mode=0o600)
        with file.open("a") as opened:
            opened.write(f"{name} {salt.hex()} {_hash(salt, key)}\n")
    except OSError as error:
        raise FvitError(f"{file} cannot be written: {error.strerror}") from error
    return key


class Keys:
    """The keys of a file. Where it is broken later, on_error is told and they stay as they were.

    Raises FvitError for a file that cannot be read or holds none.
    """

    def __init__(self, file: Path, *, on_error: Callable[[str], Any]) -> None:
        self._file, self._on_error = file, on_error
        self._seen = _signature(file)
        self._entries = _read(file)
        if not self._entries:
            raise FvitError(f"{file} holds no key: make one with  fvit-serve key {file} NAME")

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None where nobody's. Takes the same time wherever in the file it is."""
        self._refresh()
        found = None
        for name, salt, digest in self._entries:
            if hmac.compare_digest(_hash(salt, key), digest):
                found = name
        return found

    def _refresh(self) -> None:
        if (now := _signature(self._file)) == self._seen:
            return
        self._seen = now
        try:
            self._entries = _read(self._file)
        except FvitError as error:
            self._on_error(str(error))


def _read(file: Path) -> list[tuple[str, bytes, str]]:
    try:
        with open_plain(str(file)) as opened:
            lines = opened.read().decode("ascii").splitlines()
    except (OSError, ValueError) as error:
        raise FvitError(f"{file} is no file of keys: {error}") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if not (parts := LINE.fullmatch(line)):
            raise FvitError(f"{file} is no file of keys: line {number} is not a name, a salt and a hash")
        entries.append((parts[1], bytes.fromhex(parts[2]), parts[3]))
    return entries


def _hash(salt: bytes, key: str) -> str:
    return hashlib.sha256(salt + key.encode("utf-8", "surrogateescape")).hexdigest()


def _signature(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
