"""Default locations: the embedded server's data and the client's settings. Creates nothing."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "libvirt-volume-provisioner"
DEFAULT_BIND = "127.0.0.1:8080"
DEFAULT_URL = f"http://{DEFAULT_BIND}"


def data_dir() -> Path:
    """Where ``lvp serve`` without a config keeps volumes, cache, jobs and tokens."""
    if os.geteuid() == 0:
        return Path("/var/lib", NAME)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share", NAME)


def client_token() -> Path:
    """Where ``lvp serve`` without a config leaves the operator's token at its first start."""
    return data_dir() / "client-token"


def client_file() -> Path:
    """The client's settings."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "lvp.toml")
