"""Removes a volume on request, together with its cloud-init seed. Not a job: nothing is left to show once it has ended.

The volume goes first: if its seed cannot be removed then, or the service dies in between, the seed stays, and the same
request removes it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import structlog

from provisioner.contracts.errors import NotFoundError, VolumeNameError
from provisioner.pipeline.cloud_init import seed_name
from provisioner.pipeline.seed import is_seed_of

if TYPE_CHECKING:
    from provisioner.contracts import BlockTarget
    from provisioner.jobs.reservations import Reservations
    from provisioner.pipeline.pipeline import Pipeline

log = structlog.get_logger(__name__)


async def remove_with_seed(
    pipeline: Pipeline, reservations: Reservations, target: BlockTarget, volume_name: str
) -> str | None:
    """Remove the volume, whose name is reserved, and its seed; return the seed's name, None if there was none."""
    seed = await _find_seed(target, volume_name)
    with ExitStack() as held:
        await pipeline.check_guards(target, volume_name)
        if seed is not None:
            held.enter_context(reservations.holding(target.name, seed, f"the volume {seed} is being removed"))
            # It may have been removed or replaced before its name was held.
            seed = await _find_seed(target, volume_name)
        if seed is not None:
            await pipeline.check_guards(target, seed)
        try:
            await target.remove(volume_name)
            log.info("volume removed", target=target.name, volume=volume_name)
        except NotFoundError:
            if seed is None or await target.find(volume_name) is not None:
                raise
        if seed is not None:
            await target.remove(seed)
            log.info("volume removed", target=target.name, volume=seed, seed_of=volume_name)
        return seed


async def _find_seed(target: BlockTarget, volume_name: str) -> str | None:
    name = seed_name(volume_name)
    try:
        return name if is_seed_of(await target.find(name), volume_name) else None
    except VolumeNameError:
        return None
