"""Builds what a boot needs: the Debian images, the test dependencies, and the disk with the project."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import initramfs, sources, tree
from .cache import entry, key_of
from .packages import install_missing

CHECKOUT = Path(__file__).resolve().parents[3]
# The first file that exists is used.
REQUIREMENTS = (CHECKOUT / "requirements" / "test.txt", CHECKOUT / "requirements" / "dev.txt")
# The Debian releases that guests can run, and their Python versions.
RELEASES = {"bookworm": "3.11", "trixie": "3.13"}
# If a wheel is given, leave out the sources: `python -m pytest` puts the working directory first on the path.
IN_THE_WHEEL = ("provisioner", "plugins")


@dataclass(frozen=True)
class Images:
    """Files that many guests share. They are never written to."""

    kernel: Path
    initramfs: Path
    user_mode_kernel: Path
    user_mode_initramfs: Path
    root: Path
    site: Path  # an ext4 image with the test dependencies
    python: str  # the guest's, such as 3.11


def prepare(variant: str = "plain") -> Images:
    """Install missing tools and build missing images, and return the images.

    :param variant: one of `tree.VARIANTS`
    """
    install_missing()
    debian, python = _debian(variant), RELEASES[guest_release()]
    site = _site(python)
    return Images(
        kernel=debian / "kernel", initramfs=debian / "initramfs",
        user_mode_kernel=debian / "linux.uml", user_mode_initramfs=debian / "initramfs.uml",
        root=debian / "root.ext4", site=site / "site.ext4", python=python,
    )  # fmt: skip


def guest_release() -> str:
    """Return the guests' Debian release: LVP_RELEASE (`make test RELEASE=trixie`), or else this machine's."""
    wanted = os.environ.get("LVP_RELEASE") or sources.machine_release()
    if wanted not in RELEASES:
        raise RuntimeError(f"guests cannot run release {wanted}; choose one of {', '.join(RELEASES)}")
    return wanted


def project_disk(image: Path, wheel: Path | None) -> None:
    """Pack the checkout (tracked and new files) and the installed wheel as the guest's /project."""
    staging = image.with_suffix(".tree")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        left_out = wheel is not None and name.split("/")[0] in IN_THE_WHEEL
        if not left_out and (CHECKOUT / name).is_file():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, staging / name)
    if wheel:
        _pip_install(staging / ".wheel", None, ["--no-deps", str(wheel)])
    tree.pack(staging, image, "2G")
    shutil.rmtree(staging)


def _debian(variant: str) -> Path:
    codename, apt_sources = sources.machine_sources(guest_release())
    recipe = [Path(module.__file__ or "").read_bytes() for module in (tree, initramfs)]
    return entry("debian", key_of(codename, variant, *recipe),
                 lambda directory: tree.build_images(directory, codename, apt_sources, variant))  # fmt: skip


def _site(python: str) -> Path:
    """Return the directory with the tests' dependencies; without a requirements file there is only Debian's pytest."""
    requirements = next((file for file in REQUIREMENTS if file.exists()), None)
    texts = [requirements.read_bytes()] if requirements else []

    def build(directory: Path) -> None:
        site = directory / "tree"
        site.mkdir()
        if requirements:
            _pip_install(site, python, ["--only-binary=:all:", "-r", str(requirements)])
        tree.pack(site, directory / "site.ext4", "2G")
        shutil.rmtree(site)

    return entry("site", key_of(python, *texts), build)


def _pip_install(target: Path, python: str | None, what: list[str]) -> None:
    """Install packages for the guest's ``python`` (None: for any). Runs here: under emulation pip takes minutes."""
    tree.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
              "--root-user-action=ignore", "--target", str(target), *_guest_platform(python), *what])  # fmt: skip
    for script in (target / "bin").glob("*"):
        first, _, rest = script.read_bytes().partition(b"\n")
        if first.startswith(b"#!") and b"python" in first:
            script.write_bytes(b"#!/usr/bin/python3\n" + rest)


def _guest_platform(python: str | None) -> list[str]:
    """Return pip's options for the guest's Python, if it differs from the one that runs pip."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python is None or (python == own and os.uname().machine == "x86_64"):
        return []
    platforms = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
    return ["--python-version", python, "--implementation", "cp", *(f"--platform={name}" for name in platforms)]
