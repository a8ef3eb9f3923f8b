"""The one family of errors that a person is meant to read: what was wrong, and what to do."""

from __future__ import annotations


class FvitError(Exception):
    """Bad input or a broken environment, said in one line; commands print it without a traceback."""


class OutOfMemory(FvitError):
    """A device has no memory left for what was asked of it; half as much at once may still fit."""


class DeviceLost(FvitError):
    """A device has failed for good: what it was given has to be done elsewhere."""
