"""The settings of a ``[targets.NAME]`` table with ``plugin = "rbd"``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lvp_target_rbd.names import is_pool_name
from provisioner.contracts import AbsolutePath, Duration, Finding, KeepingSettings, SecretRef, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping


class RbdSettings(KeepingSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the target ``rbd``.

    ``pool`` and ``namespace`` hold the images; both must exist. With an erasure-coded ``data_pool``, the data of images
    is there, and ``pool`` has only their names and metadata. ``user`` is the client's name without ``client.``, and
    ``keyring`` its key: a file or a credential of systemd in Ceph's keyring format; if empty, Ceph searches in its
    usual places. With ``clone``, the first job with an image also creates a read-only base of it, and later volumes on
    every host are clones of this base.
    """

    pool: str
    namespace: str = ""
    data_pool: str = ""
    conf: AbsolutePath = AbsolutePath("/etc/ceph/ceph.conf")
    user: str = "lvp"
    keyring: SecretRef | None = None
    clone: bool = True
    # A base uses space as long as it exists; bases without clones are removed first.
    max_bases: int = 50
    # What happens if a volume of the requested name exists; a swap stages the new one beside it.
    replace: Literal["swap", "refuse"] = "swap"
    # A full pool stops every guest in it, so new volumes leave the last tenth to existing ones.
    max_used_percent: float = 90.0
    # A cluster that loses a disk answers again after some 20 s; a call that waits longer fails.
    op_timeout: Duration = Duration(30)
    # Ceph notices after 30 s that a client is dead; until then its volumes look open.
    stale_client_wait: Duration = Duration(35)
    # Another host takes over an import when its host has not renewed its lease for so long.
    lease: Duration = Duration(30)
    # How often the pool's space is looked at during a copy.
    watch_interval: Duration = Duration(5)
    # The distribution's Python, for which its Ceph packages install their modules.
    python: AbsolutePath = AbsolutePath("/usr/bin/python3")
    qemu_storage_daemon: AbsolutePath = AbsolutePath("/usr/bin/qemu-storage-daemon")

    def __post_init__(self) -> None:
        refuse(self.faults())

    def faults(self) -> list[str]:
        """Return the faults of the settings, one message each."""
        named = {"pool": self.pool, "namespace": self.namespace, "data_pool": self.data_pool, "user": self.user}
        wrong = [
            f"{key} '{value}' is not a valid name"
            for key, value in named.items()
            if (value or key in {"pool", "user"}) and not is_pool_name(value)
        ]
        from_environment = self.keyring is not None and self.keyring.startswith("env:")
        checks = {
            "keyring must be a file or a credential, because Ceph reads it itself": from_environment,
            "max_bases must be at least 1": self.max_bases < 1,
            "max_used_percent must be over 0 and at most 100": not 0 < self.max_used_percent <= 100,
            "op_timeout must be at least 1s": self.op_timeout < 1,
            "lease must be at least 3s": self.lease < 3,
            "watch_interval must be at least 100ms": self.watch_interval < 0.1,
        }
        return [*wrong, *(words for words, bad in checks.items() if bad), *self.keeping_faults()]

    @property
    def place(self) -> str:
        """Return the pool and the namespace, as in ``vms/lab``."""
        return f"{self.pool}/{self.namespace}" if self.namespace else self.pool

    def keyring_path(self, environ: Mapping[str, str]) -> str:
        """Return the path of the keyring; empty if Ceph searches for it."""
        kind, _, location = (self.keyring or "").partition(":")
        if kind != "credential":
            return location
        return str(Path(environ.get("CREDENTIALS_DIRECTORY", "/run/credentials")) / location)

    def check_files(self) -> Mapping[str, Finding]:
        """Return what is missing on this host, by key."""
        found = {
            "conf": _readable(self.conf, "copy ceph.conf from a monitor"),
            "python": _readable(self.python, "set python to the distribution's Python"),
            "qemu_storage_daemon": _readable(
                self.qemu_storage_daemon, "install qemu-system-common (Debian) or qemu-storage-daemon (Fedora)"
            ),
        }
        # A credential exists only in the service itself.
        if (self.keyring or "").startswith("file:"):
            found["keyring"] = _readable(self.keyring_path({}), "write the key of the client there (ceph auth get)")
        return found


def _readable(path: str, fix: str) -> Finding:
    readable = os.access(path, os.R_OK)
    return Finding(readable, f"{path} can be read" if readable else f"{path} is missing or cannot be read", fix)
