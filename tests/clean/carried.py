"""Copies this machine's settings for package registries into the clean tree, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

# Proxies, and the settings of pip, uv and Go: mirrors, certificates and how to verify downloads.
VARIABLES = re.compile(
    r"(?i:(https?|ftp|no|all)_proxy)|PIP_\w+|UV_\w+|GO(PROXY|SUMDB|NOSUMDB|NOSUMCHECK|NOPROXY|PRIVATE|FLAGS|INSECURE|TOOLCHAIN)"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|CI"
)
BUNDLE = Path("etc/ssl/certs/ca-certificates.crt")
CERTIFICATES = Path("usr/local/share/ca-certificates")
GO_ENVIRONMENT = Path("root/.config/go/env")


def environment(tree: Path) -> dict[str, str]:
    """Return the variables for commands in ``tree``; those that name a path that is missing there are left out."""
    return {
        name: value
        for name, value in os.environ.items()
        if VARIABLES.fullmatch(name) and (not value.startswith("/") or (tree / value.lstrip("/")).exists())
    }


def files() -> dict[Path, Path]:
    """Return the files to copy: path in the tree -> path here."""
    home = Path.home()
    found = {Path("etc/pip.conf"): Path("/etc/pip.conf"), GO_ENVIRONMENT: _go_environment()}
    for place in (home / ".pip/pip.conf", home / ".config/pip/pip.conf"):
        found[Path("root/.config/pip/pip.conf")] = place
        if place.is_file():
            break
    # The machine's own CAs, and its bundle, until the tree has the package that creates one.
    authorities = sorted((Path("/") / CERTIFICATES).rglob("*.crt"))
    found |= {path.relative_to("/"): path for path in authorities}
    if authorities:
        found[BUNDLE] = Path("/") / BUNDLE
    return {inside: here for inside, here in found.items() if here.is_file()}


def install(tree: Path) -> None:
    """Copy the files into ``tree``."""
    for inside, here in files().items():
        (tree / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(here, tree / inside)


def _go_environment() -> Path:
    go = shutil.which("go")
    if go:
        return Path(subprocess.run([go, "env", "GOENV"], capture_output=True, text=True, check=True).stdout.strip())
    return Path.home() / ".config/go/env"
