"""The lease of the host that imports an image: others wait for it instead of importing the same image too.

The cluster's clock ends a lease that is not renewed, and the service itself renews it: a host that was killed or is
frozen loses it. Only work depends on leases: which base counts is decided when it gets its name.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from lvp_target_rbd.child_process import Companion, companion
from lvp_target_rbd.client import LEASE_HOLDER, Client
from provisioner.contracts.errors import TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lvp_target_rbd.settings import RbdSettings

log = structlog.get_logger(__name__)

# A third of the lease: two renewals may fail.
_RENEWALS = 3
_END = 5.0


@asynccontextmanager
async def leased(client: Client, settings: RbdSettings, key: str) -> AsyncIterator[None]:
    """Wait until this host has the lease ``key``, and hold it until the block ends."""
    request = client.request("lease", {"key": key, "seconds": int(settings.lease)})
    argv = [settings.python, "-I", str(LEASE_HOLDER), request]
    async with companion(argv, "the lease", seconds=_END) as holder:
        if not (answer := await holder.read()).startswith(b"held"):
            if answer.startswith(b"{"):
                raise client.error(json.loads(answer))
            raise TargetUnavailableError(f"pool {settings.place} grants no lease; look at 'ceph status'")
        async with _beside(partial(_renew, holder, settings.lease / _RENEWALS, key)):
            yield


async def _renew(holder: Companion, seconds: float, key: str) -> None:
    """Renew until the lease is lost. That is no reason to stop: at the end, the base has one name."""
    while True:
        await trio.sleep(seconds)
        try:
            await holder.tell()
        except trio.BrokenResourceError:
            answer = b""
        else:
            answer = await holder.read()
        if not answer.startswith(b"renewed"):
            log.warning("another host may import the same image", lease=key)
            return


@asynccontextmanager
async def _beside(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run ``work`` until the block ends. The block's own error is raised as it is, not in an exception group."""
    failure: list[Exception] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - carried out of the nursery, which would wrap it
            failure.append(error)
        nursery.cancel_scope.cancel()
    if failure:
        raise failure[0]
