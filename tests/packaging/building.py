"""Builds packages from a copy of the checkout, so that changes during the tests do not matter."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
EPOCH = "1767225600"  # an arbitrary day


@dataclass(frozen=True)
class Packages:
    """The output of one build."""

    folder: Path

    @property
    def deb(self) -> Path:
        return self.any("libvirt-volume-provisioner_*.deb")

    @property
    def rpm(self) -> Path:
        return self.any("libvirt-volume-provisioner-*.rpm")

    def any(self, pattern: str) -> Path:
        """Return the only file that matches."""
        (found,) = self.folder.glob(pattern)
        return found


def distribution_python() -> str:
    """Return the name of the distribution's Python, for which the packages are built and tested."""
    return Path("/usr/bin/python3").readlink().name


def snapshot(folder: Path, version: str | None = None) -> Path:
    """Copy all files that git tracks or would add; ``version`` replaces the project's version."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, folder / name)
    if version is not None:
        module = folder / "provisioner" / "__init__.py"
        lines = module.read_text().splitlines()
        module.write_text("\n".join(f'__version__ = "{version}"' if "__version__" in line else line for line in lines))
    return folder


def build(source: Path, folder: Path, **environment: str) -> Packages:
    """Build the service's packages from ``source`` into ``folder``."""
    return _run([source / "packaging" / "build", folder], folder, environment)


def build_plugin(source: Path, folder: Path, **environment: str) -> Packages:
    """Build the example plugin's packages from ``source`` into ``folder``."""
    return _run(
        [source / "packaging" / "build-plugin", source / "contrib" / "example-plugin", folder], folder, environment
    )


def _run(command: list[Path], folder: Path, environment: dict[str, str]) -> Packages:
    surroundings = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PYTHON": distribution_python(), **environment}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Packages(folder)
