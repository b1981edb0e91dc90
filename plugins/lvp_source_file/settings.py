"""The settings of a ``[sources.NAME]`` table with ``plugin = "file"``, their validation, and a look at the folders."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import msgspec

from provisioner.contracts import AbsolutePath, Duration, Finding, checksum_file_faults, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The kernel's own file systems: their files are no images, and reading some of them has effects.
_KERNEL = ("/proc", "/sys", "/dev")
_MEMORY = ("/dev/shm",)  # noqa: S108 - a file system like any other
# Seconds that a folder may take to answer a check.
_PATIENCE = 5.0


class FileSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the source ``file``.

    ``folders`` contain the images; a url such as ``file:///srv/images/debian-12.qcow2`` names one. Symbolic links are
    followed as long as they are relative and stay inside the folder. ``stall_timeout`` limits how long the file system
    may take for one answer. ``checksum_files`` is as for sources over HTTP.
    """

    folders: list[AbsolutePath]
    checksum_files: list[str] = msgspec.field(default_factory=list)
    # As for servers. NFS with default options waits for its server without an end.
    stall_timeout: Duration = Duration(30)

    def __post_init__(self) -> None:
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        if not self.folders:
            yield "folders must name at least one folder, such as '/srv/images'"
        for folder in self.folders:
            yield from _faults_of(folder)
        if self.stall_timeout <= 0:
            yield "stall_timeout must be over 0"
        yield from checksum_file_faults(self.checksum_files)

    def check_files(self) -> Mapping[str, Finding]:
        """Return for each folder whether it can be opened; ``lvp config check`` and ``lvp doctor`` show it."""
        return {f"folders[{number}]": _look_at(folder) for number, folder in enumerate(self.folders)}


def _faults_of(folder: str) -> Iterator[str]:
    plain = os.path.normpath(folder)
    if plain in {"/", "//"} or (_is_below(plain, _KERNEL) and not _is_below(plain, _MEMORY)):
        yield f"folders must not contain '{folder}'; name the folder of the images"
    elif plain != folder.rstrip("/"):
        yield f"folders: write '{plain}' instead of '{folder}'"


def _is_below(folder: str, tops: tuple[str, ...]) -> bool:
    return any(folder == top or folder.startswith(f"{top}/") for top in tops)


def _look_at(folder: str) -> Finding:
    """Open the folder in a thread of its own: a network file system may hang."""
    found = [Finding(False, f"{folder} did not answer within {_PATIENCE:g} s", "check the file system's server")]

    def look() -> None:
        try:
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            fix = "create the folder, mount its file system, or let the service's user read it"
            found[0] = Finding(False, f"{folder} cannot be opened: {error.strerror}", fix)
        else:
            found[0] = Finding(True, f"{folder} can be opened")

    thread = threading.Thread(target=look, daemon=True, name="look at a folder")
    thread.start()
    thread.join(_PATIENCE)
    return found[0]
