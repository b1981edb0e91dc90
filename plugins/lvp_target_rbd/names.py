"""Image names: which ones volumes may have, and the names reserved for this service. Pure.

The name of an image shows its role, because a rename is the one change that happens at once. OWNER is the installation
that works on it, TOKEN is unique: ``lvp.stage.OWNER.TOKEN`` is under construction, ``lvp.old.OWNER.TOKEN`` was set
aside by the swap TOKEN, ``lvp.gone.OWNER.TOKEN`` is being removed, ``lvp.kept.TOKEN`` was replaced and is kept,
``lvp.base.DIGEST`` is a base. Any other name is a volume. Objects that are no images are ``lvp.lease.*``.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from provisioner.contracts.errors import VolumeNameError

OWN = "lvp."
BASE, KEPT = "lvp.base.", "lvp.kept."
# Ceph allows more, but libvirt, QEMU and the command line give '/', '@', ':' and ',' a meaning of their own.
_SHAPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
MAX_NAME = 96
_WORKING = re.compile(r"lvp\.(stage|old|gone)\.([0-9a-f]+)\.([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Working:
    """A name of an image that is being worked on: its ``role`` (stage, old or gone), ``owner`` and ``token``."""

    role: str
    owner: str
    token: str

    @property
    def name(self) -> str:
        return f"{OWN}{self.role}.{self.owner}.{self.token}"

    @classmethod
    def parse(cls, name: str) -> Working | None:
        """Return the parts of such a name; None for any other."""
        match = _WORKING.fullmatch(name)
        return None if match is None else cls(*match.groups())


def new_token() -> str:
    """Return a unique token for a staging."""
    return secrets.token_hex(8)


def base_name(image_digest: str, image_format: str) -> str:
    """Return the name of the base for an image and format; it is the same on every host."""
    return BASE + hashlib.sha256(f"{image_format} {image_digest}".encode()).hexdigest()[:24]


def lease_name(base: str) -> str:
    """Return the object with the lease for importing the base."""
    return f"lvp.lease.import.{base.removeprefix(BASE)}"


def is_volume_name(name: str) -> bool:
    """Return whether an image of that name is a volume."""
    return not name.startswith(OWN)


def check(volume: str) -> None:
    """Raise VolumeNameError unless ``volume`` can be a user's volume."""
    reason = None
    if not _SHAPE.fullmatch(volume):
        reason = "use only letters, digits, '_', '+', '.' and '-', and begin with a letter, a digit or '_'"
    elif len(volume) > MAX_NAME:
        reason = f"at most {MAX_NAME} characters are allowed"
    elif volume.startswith(OWN):
        reason = f"names that start with '{OWN}' are reserved for this service"
    if reason is not None:
        raise VolumeNameError(f"{volume[:130]!r} is not a valid volume name: {reason}")


def is_pool_name(name: str) -> bool:
    """Return whether ``name`` can be a pool or a namespace."""
    return bool(re.fullmatch(r"[A-Za-z0-9_.+-]+", name))
