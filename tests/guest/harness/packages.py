"""Installs the packages that the harness needs on this machine: those for ``guest`` in contrib/dev/packages."""

import subprocess
from pathlib import Path

SETUP = Path(__file__).resolve().parents[3] / "contrib" / "dev" / "setup"


def install_missing(purpose: str = "guest") -> None:
    """Install the packages that are missing and print their names."""
    subprocess.run([SETUP, "packages", purpose], check=True)
