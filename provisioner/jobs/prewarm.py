"""Keeps configured images in the cache: fetch jobs on a schedule."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from provisioner.contracts import Checksum, ImageUrl
from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.urls import shown
from provisioner.pipeline.job_run import JobSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from provisioner.config import PrewarmSettings
    from provisioner.jobs.supervisor import Supervisor

log = structlog.get_logger(__name__)

# Below the jobs of clients.
_PRIORITY = -1000
# Seconds until the next try after a refused submit, for example because of a full queue.
_RETRY = 300.0


async def prewarm(
    supervisor: Supervisor, images: Sequence[PrewarmSettings], named: Callable[[str], Awaitable[JobSpec]]
) -> None:
    """Submit a fetch of each image now and then at its interval, until cancelled.

    For a cached image the fetch only asks the server, and downloads if the server has another version. ``named``
    returns what the name of an image stands for now; it may raise a ProvisionerError.
    """
    async with trio.open_nursery() as nursery:
        for image in images:
            nursery.start_soon(_keep, supervisor, image, named)


async def _keep(supervisor: Supervisor, image: PrewarmSettings, named: Callable[[str], Awaitable[JobSpec]]) -> None:
    while True:
        pause = float(image.every)
        try:
            spec = await named(image.image) if image.image is not None else _by_url(image)
            spec = msgspec.structs.replace(spec, priority=_PRIORITY)
            request: dict[str, str | int] = {"image_type": spec.image_format, "priority": spec.priority}
            if image.image is not None:
                request["image"] = image.image
            if spec.checksum is not None:
                request["checksum"] = str(spec.checksum)
            await supervisor.submit(
                spec, request_id=str(uuid.uuid4()), principal="prewarm", idempotency_key=None, request=request
            )
        except ProvisionerError as error:
            name = image.image or shown(image.url or "")
            log.warning("an image could not be prewarmed", image=name, reason=error.message)
            pause = min(pause, _RETRY)
        await trio.sleep(pause)


def _by_url(image: PrewarmSettings) -> JobSpec:
    return JobSpec(
        image_url=ImageUrl.parse(image.url or ""),
        image_format=image.image_type or "qcow2",
        checksum=Checksum.parse(image.checksum) if image.checksum else None,
    )
