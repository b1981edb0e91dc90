"""Installs what the harness needs on this machine: the packages for ``guest`` in contrib/dev/packages."""

import subprocess
from pathlib import Path

SETUP = Path(__file__).resolve().parents[3] / "contrib" / "dev" / "setup"


def install_missing(purpose: str = "guest") -> None:
    """Install the packages that dpkg does not have, and print their names; do nothing if all are there."""
    subprocess.run([SETUP, "packages", purpose], check=True)
