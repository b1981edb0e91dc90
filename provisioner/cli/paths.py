"""Default paths: the server's configuration, the embedded server's data, the CA and the client's settings."""

from __future__ import annotations

import os
from pathlib import Path

from provisioner.client import settings

NAME = "libvirt-volume-provisioner"
# The packaged configuration. If it exists, every command on the host uses it unless it is told otherwise.
SYSTEM_CONFIG = Path("/etc", NAME, "config.toml")
DEFAULT_BIND = "127.0.0.1:8080"
DEFAULT_URL = settings.DEFAULT_URL

# The files of the commands, for the man page.
FILES = {
    "~/.config/lvp.toml": "The client's settings: server, token and certificates.",
    str(SYSTEM_CONFIG): "The server's configuration, which the commands on the host use if it exists.",
    f"/var/lib/{NAME}": "Data of lvp serve without a configuration, for root.",
    f"~/.local/share/{NAME}": "The same for other users. client-token in it is the token that lvp serve left.",
    f"/etc/{NAME}/pki": "The CA that lvp pki makes, for root; for other users, pki in the folder above.",
}


def data_dir() -> Path:
    """Return the folder for volumes, cache, jobs and tokens of ``lvp serve`` without ``--config``."""
    if os.geteuid() == 0:
        return Path("/var/lib", NAME)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share", NAME)


def client_token() -> Path:
    """Return the file in which ``lvp serve`` without ``--config`` leaves the operator's token."""
    return data_dir() / "client-token"


def pki_dir() -> Path:
    """Return the folder of the CA that ``lvp pki`` makes."""
    return Path("/etc", NAME, "pki") if os.geteuid() == 0 else data_dir() / "pki"


def client_file() -> Path:
    """Return the file of the client's settings."""
    return settings.client_file(os.environ)
