"""Translates LVM's error messages into errors. Pure.

LVM exits with 5 for nearly every failure, so the patterns match its messages: those of lvm2 2.03 under LC_ALL=C.
"""

from __future__ import annotations

import re
from enum import Enum

from provisioner.contracts import last_words
from provisioner.contracts.errors import (
    NoSpaceError,
    NotFoundError,
    ProvisionerError,
    TargetError,
    TargetUnavailableError,
    VolumeExistsError,
    VolumeInUseError,
)


class Meaning(Enum):
    """The reason why an LVM command failed."""

    LOCKED = "locked"
    BUSY = "busy"
    NO_SPACE = "no space"
    EXISTS = "exists"
    NO_GROUP = "no group"
    NO_VOLUME = "no volume"
    OTHER = "other"


# The first match counts: a command that cannot get its lock also reports that it cannot process its group.
_PATTERNS: tuple[tuple[Meaning, str], ...] = (
    (Meaning.LOCKED, r"can't get lock|flock failed|giving up waiting for lock|failed to (?:get|acquire) .*lock"),
    (Meaning.NO_SPACE, r"insufficient (?:free|suitable)|not enough (?:free|space)|no free space"),
    (Meaning.NO_SPACE, r"above threshold|reached threshold|too large for circular buffer|no space left on device"),
    (Meaning.NO_SPACE, r"maximum number of logical volumes|upper limit is less than"),
    (Meaning.EXISTS, r"already exists (?:in|for)|already exists\b.*(?:volume|filesystem)"),
    (Meaning.BUSY, r"\bin use\b|is used by another device|device or resource busy|open logical volume|is busy"),
    (Meaning.NO_GROUP, r"volume group \"?\S+?\"? (?:was )?not found|cannot process volume group"),
    (Meaning.NO_VOLUME, r"failed to find logical volume|(?:logical volume|snapshot origin LV|pool) \S+ not found"),
)

_ERRORS: dict[Meaning, type[ProvisionerError]] = {
    Meaning.LOCKED: TargetUnavailableError,
    Meaning.BUSY: VolumeInUseError,
    Meaning.NO_SPACE: NoSpaceError,
    Meaning.EXISTS: VolumeExistsError,
    Meaning.NO_GROUP: TargetUnavailableError,
    Meaning.NO_VOLUME: NotFoundError,
    Meaning.OTHER: TargetError,
}


def meaning_of(stderr: str) -> Meaning:
    """Return the meaning of a failed command's stderr. Ignore warnings."""
    text = _without_warnings(stderr)
    return next((meaning for meaning, words in _PATTERNS if re.search(words, text, re.IGNORECASE)), Meaning.OTHER)


def as_error(command: str, status: int, stderr: str) -> ProvisionerError:
    """Return the error for a command that exited with ``status``; its message quotes LVM."""
    words = last_words(_without_warnings(stderr) or stderr)
    ended = "" if status == 5 else f" (exit status {status})"
    return _ERRORS[meaning_of(stderr)](f"{command} failed{ended}: {words}")


def _without_warnings(stderr: str) -> str:
    return "\n".join(line for line in stderr.splitlines() if not line.strip().startswith("WARNING:"))
