"""Volume names: what LVM allows, and the names reserved for this service. Pure.

The role of a volume of ours is in its name, because a rename is the one change LVM makes whole or not at all:
``lvp.stage.TOKEN`` is under construction, ``lvp.old.TOKEN`` was set aside by the swap that ``TOKEN`` stands for,
``lvp.gone.TOKEN`` is being removed, ``lvp.base.DIGEST`` is a base; any other name is a committed volume. Dots,
since device-mapper doubles every hyphen.
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
BASE = "lvp.base."

# lvm2's lib/misc/lvm-string.c
_SHAPE = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]*")
_RESERVED_STARTS = ("snapshot", "pvmove")
_RESERVED_PARTS = (
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_wcorig", "_mimage", "_mlog", "_rimage", "_rmeta", "_tdata",
    "_tmeta", "_vdata", "_imeta", "_iorig", "_pmspare", "_vorigin",
)  # fmt: skip
MAX_NAME = 127
# DM_NAME_LEN is 128 and counts the NUL.
MAX_MAPPER_NAME = 127


def new_token() -> str:
    """Return a unique token for a staging."""
    return secrets.token_hex(8)


def base_name(image_digest: str, image_format: str) -> str:
    """Return the name of the base for that image and format: the same for every job."""
    return BASE + hashlib.sha256(f"{image_format} {image_digest}".encode()).hexdigest()[:24]


def token_of(name: str) -> str:
    """Return the token in a reserved name, or an empty string."""
    return next((name[len(start) :] for start in (STAGE, OLD, GONE) if name.startswith(start)), "")


def mapper_name(group: str, volume: str) -> str:
    """The device-mapper name: every hyphen doubled, one between the two."""
    return f"{group.replace('-', '--')}-{volume.replace('-', '--')}"


def is_group_name(name: str) -> bool:
    """Return whether LVM accepts the name for a volume group."""
    return bool(_SHAPE.fullmatch(name)) and name not in {".", ".."} and len(name) <= MAX_NAME


def is_volume_name(name: str) -> bool:
    """Return whether LVM accepts the name for a volume."""
    return _fault("", name) is None


def check(group: str, volume: str) -> None:
    """Raise VolumeNameError unless ``volume`` can be a user's volume in ``group``."""
    fault = _fault(group, volume)
    if fault is None and volume.startswith(OWN):
        fault = f"names that begin with '{OWN}' are this service's own"
    if fault is not None:
        raise VolumeNameError(f"{volume[:130]!r} cannot be a volume's name: {fault}")


def _fault(group: str, volume: str) -> str | None:
    if not _SHAPE.fullmatch(volume):
        return "letters, digits and any of _ + . - are allowed, and no hyphen in front"
    if volume in {".", ".."}:
        return "it names a folder"
    if len(volume) > MAX_NAME or len(mapper_name(group, volume)) > MAX_MAPPER_NAME:
        return f"it is too long: with the volume group, and every hyphen counted twice, {MAX_MAPPER_NAME} are allowed"
    for start in _RESERVED_STARTS:
        if volume.startswith(start):
            return f"LVM reserves names that begin with '{start}'"
    for part in _RESERVED_PARTS:
        if part in volume:
            return f"LVM reserves names that hold '{part}'"
    return None
