"""Writes keys and certificates: whole or not at all, with the right mode from the start, and on disk."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from provisioner.contracts.errors import ConflictError

if TYPE_CHECKING:
    from pathlib import Path


def write_key(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a key that only its owner can read. Raises ConflictError if it exists and is not to be replaced."""
    _write(path, content, 0o600, overwrite=overwrite)


def write_certificate(path: Path, content: bytes) -> None:
    """Write a certificate, which anyone may read; replace an older one."""
    _write(path, content, 0o644, overwrite=True)


def _write(path: Path, content: bytes, mode: int, *, overwrite: bool) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)  # whatever the umask is
            file.write(content)
            file.flush()
            os.fsync(fd)
        if overwrite:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # unlike a rename, this fails if another program has made the file meanwhile
        _sync(path.parent)
    except FileExistsError as error:
        raise ConflictError(f"{path} was made by another program at the same time; run the command again") from error
    except OSError as error:  # such as a full disk, whose error names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
