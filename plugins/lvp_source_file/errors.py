"""Translates the kernel's errors into messages that say what to do. Pure."""

from __future__ import annotations

import errno

from lvp_source_file.beneath import NotRegularError
from provisioner.contracts.errors import (
    RemoteDeniedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SourceError,
    UrlNotAllowedError,
)

_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}


def meaning(error: OSError, name: str, folder: str) -> SourceError:
    """Return the error to raise for ``error`` about the file ``name``, which is beneath ``folder``."""
    if isinstance(error, NotRegularError):
        return SourceError(f"{name}: {error.strerror}")
    if error.errno in _MISSING:
        return RemoteNotFoundError(f"{name}: no such file")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return RemoteDeniedError(f"{name}: the service may not read it")
    if error.errno == errno.EXDEV:
        return UrlNotAllowedError(
            f"{name}: a symbolic link leads out of {folder}; only relative links that stay inside are followed"
        )
    if error.errno == errno.ELOOP:
        return SourceError(f"{name}: a symbolic link leads nowhere")
    if error.errno == errno.ENOSYS:
        return SourceError("the source of local files needs Linux 5.6 or later")
    # The rest comes from a disk or a file server, and may pass.
    return RemoteUnavailableError(f"{name} cannot be read: {error.strerror}")
