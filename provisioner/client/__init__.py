"""A typed client of the REST API, for programs in Python. ``docs/python-client.md`` has the guide.

::

    with Client("https://kvm-7.example.org:8080", ca="ca.pem", cert="me.pem", key="me.key") as client:
        job = client.submit("web-01", image="debian-12", size_gb=20)
        print(client.wait(job["job_id"])["volume"]["path"])

``AsyncClient`` has the same methods as coroutines, for asyncio and trio. Importing this package loads neither httpx nor
anything of the service; the first use of a client loads httpx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from provisioner.client.errors import (
    ApiError,
    ClientError,
    JobCancelledError,
    JobFailedError,
    SettingsError,
    UnreachableError,
    WaitTimeoutError,
)
from provisioner.client.events import Event
from provisioner.client.settings import ClientSettings

if TYPE_CHECKING:
    from provisioner.client.async_client import AsyncClient
    from provisioner.client.sync_client import Client

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "ClientSettings",
    "Event",
    "JobCancelledError",
    "JobFailedError",
    "SettingsError",
    "UnreachableError",
    "WaitTimeoutError",
]


def __getattr__(name: str) -> Any:
    """Load the clients when they are first used: the command line uses other parts, and httpx takes 0.5 s."""
    if name == "Client":
        from provisioner.client.sync_client import Client

        return Client
    if name == "AsyncClient":
        from provisioner.client.async_client import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
