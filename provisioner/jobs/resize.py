"""Grows a volume on request, while its name is reserved. Not a job: nothing is left to show once it has ended.

If the client disconnects or the service stops, the request is cancelled and the volume keeps its old size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from provisioner.contracts.errors import ResizeError

if TYPE_CHECKING:
    from provisioner.contracts import BlockTarget, Volume
    from provisioner.pipeline.pipeline import Pipeline

log = structlog.get_logger(__name__)


async def resize(
    pipeline: Pipeline, target: BlockTarget, volume_name: str, size_bytes: int, *, online: bool
) -> tuple[Volume, bool]:
    """Grow the volume to ``size_bytes``; return it and whether it has grown.

    Guards are asked unless ``online`` permits that the volume is in use, or it has the size already.
    """
    before = await target.find(volume_name)
    if before is not None and before.provenance is not None and before.provenance.seed_of is not None:
        # A later job replaces it by one of the usual size, which a target may refuse then.
        raise ResizeError(
            f"volume {volume_name} is the cloud-init seed of {before.provenance.seed_of}; its size is fixed"
        )
    if not online and before is not None and before.size_bytes < size_bytes:
        await pipeline.check_guards(target, volume_name)
    volume = await target.resize(volume_name, size_bytes, online=online)
    grown = before is None or volume.size_bytes != before.size_bytes
    if grown:
        log.info(
            "volume resized",
            target=target.name,
            volume=volume_name,
            size=volume.size_bytes,
            old_size=before.size_bytes if before else None,
            online=online,
        )
    return volume, grown
