"""Packages built from a copy of the checkout, so that nothing that happens in it meanwhile gets in."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
EPOCH = "1767225600"  # a day like any other


@dataclass(frozen=True)
class Packages:
    """What one build made."""

    folder: Path

    @property
    def deb(self) -> Path:
        return self.any("libvirt-volume-provisioner_*.deb")

    @property
    def rpm(self) -> Path:
        return self.any("libvirt-volume-provisioner-*.rpm")

    def any(self, pattern: str) -> Path:
        """The one file of that name."""
        (found,) = self.folder.glob(pattern)
        return found


def distribution_python() -> str:
    """Return the name of the Python that this machine's distribution has: its packages are tested here."""
    return Path("/usr/bin/python3").readlink().name


def snapshot(folder: Path, version: str | None = None) -> Path:
    """Copy what git knows or would take; with ``version`` as another version."""
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
    """Run the project's own build there."""
    return _run([source / "packaging" / "build", folder], folder, environment)


def build_plugin(source: Path, folder: Path, **environment: str) -> Packages:
    """Build the example plugin's packages with the same tools."""
    return _run(
        [source / "packaging" / "build-plugin", source / "contrib" / "example-plugin", folder], folder, environment
    )


def _run(command: list[Path], folder: Path, environment: dict[str, str]) -> Packages:
    surroundings = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PYTHON": distribution_python(), **environment}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Packages(folder)
