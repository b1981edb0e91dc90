"""The app behind the real hypercorn, on a port of loopback, in the test's own loop."""

from __future__ import annotations

from contextlib import asynccontextmanager

import msgspec

from provisioner.api.connections import serving
from provisioner.api.listening import listening


@asynccontextmanager
async def served(service, **server):
    """The url of ``service`` and its door, listening as ``server`` (keys of the config's table) says."""
    config = service.services.config
    door = listening(msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, **server)))
    door.bind = ["127.0.0.1:0"]
    door.take()
    async with serving(service.app, door, service.services.auditor) as (url,):
        yield url, door
