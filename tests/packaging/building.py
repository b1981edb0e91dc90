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
        (found,) = self.folder.glob("libvirt-volume-provisioner_*.deb")
        return found

    @property
    def rpm(self) -> Path:
        (found,) = self.folder.glob("libvirt-volume-provisioner-*.rpm")
        return found


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
    done = subprocess.run(
        [str(source / "packaging" / "build"), str(folder)],
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Packages(folder)
