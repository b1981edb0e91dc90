"""Volume names: what LVM allows, and the names reserved for this service. Pure.

The name of a volume that this service creates shows its role, because a rename is LVM's only atomic change:
``lvp.stage.TOKEN`` is under construction, ``lvp.old.TOKEN`` was set aside by the swap ``TOKEN``, ``lvp.kept.TOKEN`` was
replaced by it and is kept, ``lvp.gone.TOKEN`` is being removed, ``lvp.base.DIGEST`` is a base; any other name is a
committed volume. The separators are dots because device-mapper doubles every hyphen.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from provisioner.contracts.errors import VolumeNameError

OWN = "lvp."
STAGE = "lvp.stage."
OLD = "lvp.old."
GONE = "lvp.gone."
KEPT = "lvp.kept."
BASE = "lvp.base."

# lvm2's lib/misc/lvm-string.c
_SHAPE = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]*")
_RESERVED_STARTS = ("snapshot", "pvmove")
_RESERVED_PARTS = (
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_wcorig", "_mimage", "_mlog", "_rimage", "_rmeta", "_tdata",
    "_tmeta", "_vdata", "_imeta", "_iorig", "_pmspare", "_vorigin",
)  # fmt: skip
MAX_NAME = 127
# DM_NAME_LEN is 128, including the terminating NUL.
MAX_MAPPER_NAME = 127


def new_token() -> str:
    """Return a unique token for a staging."""
    return secrets.token_hex(8)


def base_name(image_digest: str, image_format: str) -> str:
    """Return the name of the base for an image and format; it is the same for every job."""
    return BASE + hashlib.sha256(f"{image_format} {image_digest}".encode()).hexdigest()[:24]


def token_of(name: str) -> str:
    """Return the token in a reserved name, or an empty string."""
    return next((name[len(start) :] for start in (STAGE, OLD, GONE, KEPT) if name.startswith(start)), "")


def mapper_name(group: str, volume: str) -> str:
    """Return the device-mapper name: both names with doubled hyphens, joined by one hyphen."""
    return f"{group.replace('-', '--')}-{volume.replace('-', '--')}"


def is_group_name(name: str) -> bool:
    """Return whether LVM accepts the name for a volume group."""
    return bool(_SHAPE.fullmatch(name)) and name not in {".", ".."} and len(name) <= MAX_NAME


def is_volume_name(name: str) -> bool:
    """Return whether LVM accepts the name for a volume."""
    return _why_invalid("", name) is None


def check(group: str, volume: str) -> None:
    """Raise VolumeNameError unless ``volume`` can be a user's volume in ``group``."""
    reason = _why_invalid(group, volume)
    if reason is None and volume.startswith(OWN):
        reason = f"names that start with '{OWN}' are reserved for this service"
    if reason is not None:
        raise VolumeNameError(f"{volume[:130]!r} is not a valid volume name: {reason}")


def _why_invalid(group: str, volume: str) -> str | None:
    if not _SHAPE.fullmatch(volume):
        return "use only letters, digits, '_', '+', '.' and '-', with no leading hyphen"
    if volume in {".", ".."}:
        return "LVM reserves '.' and '..'"
    if len(volume) > MAX_NAME or len(mapper_name(group, volume)) > MAX_MAPPER_NAME:
        return (
            f"it is too long; together with the volume group's name, and with hyphens counted twice, at most "
            f"{MAX_MAPPER_NAME} characters are allowed"
        )
    for start in _RESERVED_STARTS:
        if volume.startswith(start):
            return f"LVM reserves names that start with '{start}'"
    for part in _RESERVED_PARTS:
        if part in volume:
            return f"LVM reserves names that contain '{part}'"
    return None
