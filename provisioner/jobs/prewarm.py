"""Keeps configured images in the cache: fetch jobs on a schedule."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts import Checksum, ImageUrl
from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.urls import shown
from provisioner.pipeline.job_run import JobSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provisioner.config import PrewarmSettings
    from provisioner.jobs.supervisor import Supervisor

log = structlog.get_logger(__name__)

# Below the jobs of clients.
_PRIORITY = -1000
# Seconds until the next try after a refused submit, for example because of a full queue.
_RETRY = 300.0


async def prewarm(supervisor: Supervisor, images: Sequence[PrewarmSettings]) -> None:
    """Submit a fetch of each image now and then at its interval, until cancelled.

    For a cached image the fetch only asks the server, and downloads if the server has another version.
    """
    async with trio.open_nursery() as nursery:
        for image in images:
            nursery.start_soon(_keep, supervisor, image)


async def _keep(supervisor: Supervisor, image: PrewarmSettings) -> None:
    while True:
        pause = float(image.every)
        try:
            spec = JobSpec(
                image_url=ImageUrl.parse(image.url),
                image_format=image.image_type,
                checksum=Checksum.parse(image.checksum) if image.checksum else None,
                priority=_PRIORITY,
            )
            await supervisor.submit(spec, request_id=str(uuid.uuid4()), principal="prewarm", idempotency_key=None)
        except ProvisionerError as error:
            log.warning("an image could not be prewarmed", url=shown(image.url), reason=error.message)
            pause = min(pause, _RETRY)
        await trio.sleep(pause)
