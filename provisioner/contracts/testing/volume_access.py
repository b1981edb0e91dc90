# ruff: noqa: ASYNC230, ASYNC240 - small files of a test, on a local disk
"""How the conformance suites of block targets look at volumes: as local files, unless a subclass says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from provisioner.contracts.target import StagedVolume
    from provisioner.contracts.types import Volume

# The bytes that ``fill`` writes at the start of a device.
HEAD = 4096


class VolumeAccess:
    """Override these for a target whose ``Volume.path`` is no local path."""

    async def read_volume(self, volume: Volume, length: int = -1) -> bytes:
        """Return the first ``length`` bytes of a volume, or all of it."""
        with Path(volume.path).open("rb") as file:
            return file.read(length)

    async def write_volume(self, volume: Volume, data: bytes) -> None:
        """Write ``data`` at the start of a volume, as a guest would."""
        with Path(volume.path).open("r+b") as file:
            file.write(data)

    async def is_staged(self, staged: StagedVolume) -> bool:
        """Return whether a staged volume exists on the target."""
        return Path(staged.device.path).exists()

    async def head(self, volume: Volume) -> bytes:
        """Return the bytes that were written at the start of a volume, without the zeros after them."""
        return (await self.read_volume(volume, HEAD)).rstrip(b"\0")
