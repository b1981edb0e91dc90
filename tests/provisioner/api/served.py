"""Runs the app behind the real hypercorn, on a loopback port, in the test's event loop."""

from __future__ import annotations

from contextlib import asynccontextmanager

import msgspec

from provisioner.server.connections import serving
from provisioner.server.listener import Listener


@asynccontextmanager
async def served(service, **server):
    """Serve ``service``; yield its url and its listener. ``server`` overrides settings of [server]."""
    settings = msgspec.structs.replace(service.services.config.server, **server)
    listener = Listener(msgspec.structs.replace(settings, bind=["127.0.0.1:0"]))
    listener.bind()
    async with serving(service.app, listener, service.services.auditor) as (url,):
        yield url, listener
