"""The operations that run against each other, all on the same volume and image."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import trio

from provisioner.contracts import Checksum
from provisioner.contracts.errors import ProvisionerError
from provisioner.pipeline.cloud_init import CloudInit
from tests.cancellation.harness import DIGEST, SPEC

if TYPE_CHECKING:
    from tests.interleavings.host import Host


DATA = CloudInit(user_data="#cloud-config")


async def submit(host: Host):
    """A client submits a job for the volume; it is accepted or refused."""
    return await host.supervisor.submit(SPEC, request_id="r", principal=None, idempotency_key=None)


async def submit_seeded(host: Host):
    """A client submits a job for the volume with cloud-init data."""
    spec = msgspec.structs.replace(SPEC, cloud_init=DATA.seal())
    return await host.supervisor.submit(spec, request_id="r", principal=None, idempotency_key=None, cloud_init=DATA)


async def hang_up(host: Host):
    """A client submits a job for the volume and hangs up before the answer."""
    with trio.CancelScope() as scope:

        async def leave() -> None:
            await host.schedule.point("hang up")
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            with suppress(ProvisionerError):
                await submit(host)
            nursery.cancel_scope.cancel()


async def cancel(host: Host):
    """Cancel the newest active job."""
    active = list(host.supervisor.active_ids - host.known) or sorted(host.supervisor.active_ids)
    return await host.supervisor.cancel(active[-1] if active else "none")


async def remove_volume(host: Host):
    """Remove the volume."""
    await host.supervisor.remove_volume("main", SPEC.volume_name)


async def resize_volume(host: Host):
    """Grow the volume."""
    await host.supervisor.resize_volume("main", SPEC.volume_name, 2 * SPEC.size_bytes, online=False)


async def restore(host: Host):
    """Restore the kept volume."""
    return await host.supervisor.kept.restore("main", SPEC.volume_name, None)


async def remove_kept(host: Host):
    """Remove the kept volume by hand."""
    return await host.supervisor.kept.remove("main", SPEC.volume_name, None)


async def adopt(host: Host):
    """Adopt the volume."""
    return await host.supervisor.kept.adopt("main", SPEC.volume_name)


async def expire(host: Host):
    """Remove the kept volumes whose time is up."""
    host.supervisor.kept.wall = time.time  # which a new store does not trust yet
    await host.supervisor.kept._expire("main", host.target)


async def evict(host: Host):
    """Remove the image from the cache."""
    return await host.cache.remove(DIGEST)


async def pin(host: Host):
    """Pin the image in the cache."""
    return await host.cache.pin(DIGEST, pinned=True)


async def prune(host: Host):
    """Remove every image that is neither pinned nor in use."""
    return await host.cache.prune()


async def drain(host: Host):
    """Stop the service: no new jobs; running ones are interrupted and resume after the restart."""
    await host.supervisor.drain()
    host.stop_jobs()


# --- initial states ---


async def a_volume(host: Host) -> None:
    """The volume was provisioned by an earlier job; its image is in the cache."""
    await submit(host)
    await host.settle()
    assert host.volume() is not None
    assert host.cache.find(Checksum.parse(DIGEST), "", None) is not None


async def a_seeded_volume(host: Host) -> None:
    """The volume and its cloud-init seed were made by an earlier job."""
    await submit_seeded(host)
    await host.settle()
    assert host.target._volume("web01-seed") is not None


async def a_foreign_volume(host: Host) -> None:
    """A volume of that name exists that the service did not make."""
    host.put_old_volume()


async def a_kept_volume(host: Host) -> None:
    """A foreign volume was replaced and is kept."""
    await a_foreign_volume(host)
    await a_volume(host)
    assert len(host.kept()) == 1
