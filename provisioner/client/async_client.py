"""The client for asyncio and trio. ``contrib/dev/async_client.py`` writes this file from ``sync_client``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import httpx

from provisioner.client import answers, requests
from provisioner.client import types as t
from provisioner.client.connection import (
    EVENT_TIMEOUTS,
    arguments,
    settings_from,
    socket_of,
    timeouts,
    transport_errors,
)
from provisioner.client.errors import ApiError, UnreachableError
from provisioner.client.events import Event, EventParser
from provisioner.client.requests import Listing, Request, api_path, changing, filled, get, image_fields, keyed
from provisioner.client.waiting import ENDED, Waiting, completed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

T = TypeVar("T")


class AsyncClient:
    """A client of one server. It keeps connections open, and closes them at the end of ``async with``.

    What is not given comes from the environment (``LVP_URL``, ``LVP_TOKEN``, ``LVP_TOKEN_FILE``, ``LVP_CA``,
    ``LVP_CERT``, ``LVP_KEY``) or from ``~/.config/lvp.toml``, as for the command line. ``url`` may be ``unix:/PATH``.

    Methods raise ApiError for an error response and UnreachableError without one. A request whose response is lost is
    sent again if that does no harm; a job is never submitted twice.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        token_file: str | None = None,
        ca: str | None = None,
        cert: str | None = None,
        key: str | None = None,
    ) -> None:
        """Read the settings and the certificates; connect later. Raises SettingsError."""
        given = {"url": url, "token": token, "token_file": token_file, "ca": ca, "cert": cert, "key": key}
        settings = settings_from(given)
        more = arguments(settings)
        uds = socket_of(settings)
        transport = httpx.AsyncHTTPTransport(uds=uds) if uds else None
        self._url = settings.url
        self._http = httpx.AsyncClient(transport=transport, **more)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # --- jobs ---

    async def submit(
        self,
        volume_name: str,
        *,
        image: str | None = None,
        image_url: str | None = None,
        size_gb: int | None = None,
        image_type: str | None = None,
        target: str | None = None,
        checksum: str | None = None,
        priority: int | None = None,
        correlation_id: str | None = None,
        cloud_init: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> t.JobAccepted:
        """Request a volume of ``size_gb`` GiB (default: the smallest that fits) with an image."""
        body = image_fields(image, image_url, image_type, checksum) | filled(
            volume_name=volume_name, volume_size_gb=size_gb, target=target, priority=priority,
            correlation_id=correlation_id, cloud_init=cloud_init,
        )  # fmt: skip
        return await self._send(keyed(api_path("jobs"), body, idempotency_key))

    async def plan(
        self,
        volume_name: str,
        *,
        image: str | None = None,
        image_url: str | None = None,
        size_gb: int | None = None,
        image_type: str | None = None,
        target: str | None = None,
        checksum: str | None = None,
        cloud_init: Mapping[str, str] | None = None,
    ) -> t.Plan:
        """Return what the job would do, and why it would be refused. Changes nothing."""
        body = image_fields(image, image_url, image_type, checksum) | filled(
            volume_name=volume_name, volume_size_gb=size_gb, target=target, cloud_init=cloud_init
        )
        return await self._send(Request[t.Plan]("POST", api_path("plan"), body, repeatable=True))

    async def job(self, job_id: str) -> t.Job:
        """Return a job."""
        return await self._send(Request[t.Job]("GET", api_path("jobs", job_id), repeatable=True))

    def jobs(
        self, *, status: t.JobStatus | None = None, volume_name: str | None = None, correlation_id: str | None = None
    ) -> AsyncIterator[t.Job]:
        """Yield jobs, newest first."""
        params = {"status": status, "volume_name": volume_name, "correlation_id": correlation_id}
        return self._listed(Listing[t.Job](api_path("jobs"), "jobs", params))

    async def cancel(self, job_id: str) -> t.JobCancelled:
        """Cancel a job; return when it is rolled back."""
        return await self._send(
            Request[t.JobCancelled]("POST", api_path("jobs", job_id, "cancel"), timeout=requests.CHANGE_TIMEOUT)
        )

    async def retry(self, job_id: str, *, idempotency_key: str | None = None) -> t.JobAccepted:
        """Submit the request of an ended job again."""
        return await self._send(keyed(api_path("jobs", job_id, "retry"), None, idempotency_key))

    async def follow(
        self, job_id: str, *, timeout: float | None = None, patience: float = 120.0
    ) -> AsyncIterator[t.Job]:
        """Yield a job now and at each change, until it has ended in any way.

        After ``timeout`` seconds (None: never) WaitTimeoutError is raised, and the job continues. ``patience`` is how
        many seconds the server may be away, such as during a restart.
        """
        job, waiting = await self.job(job_id), Waiting(timeout, patience)
        yield job
        while job["status"] not in ENDED:
            await anyio.sleep(waiting.seen(job))
            latest = await self._look(job, waiting)
            if latest != job:
                yield latest
            job = latest

    async def wait(self, job_id: str, *, timeout: float | None = None, patience: float = 120.0) -> t.Job:
        """Return a job when it has completed. Raises JobFailedError, JobCancelledError; otherwise as ``follow``."""
        latest = None
        async for job in self.follow(job_id, timeout=timeout, patience=patience):
            latest = job
        assert latest is not None, "follow yields the job at least once"
        return completed(latest)

    async def _look(self, job: t.Job, waiting: Waiting) -> t.Job:
        while True:
            try:
                return await self.job(job["job_id"])
            except (ApiError, UnreachableError) as error:
                pause = waiting.missed(error, job)
            await anyio.sleep(pause)

    async def events(self, job_id: str | None = None, *, last_event_id: str | None = None) -> AsyncIterator[Event]:
        """Yield changes as they happen, of one job or of everything, until the stream ends.

        With the ``event_id`` of an earlier event, what has happened since then comes first. Raises UnreachableError if
        the stream breaks off.
        """
        path = api_path("events") if job_id is None else api_path("jobs", job_id, "events")
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
        parser = EventParser()
        with transport_errors(self._url):
            async with self._http.stream("GET", path, headers=headers, timeout=EVENT_TIMEOUTS) as response:
                if response.status_code == 204:
                    return
                if response.status_code != 200:
                    await response.aread()
                    answers.read(self._url, response.status_code, response.text, response.headers)
                async for line in response.aiter_lines():
                    if event := parser.feed(line):
                        yield event

    # --- volumes ---

    def volumes(self) -> AsyncIterator[t.Volume]:
        """Yield the volumes that the service made and that still exist. Raises ApiError if a target does not answer."""
        return self._listed(Listing[t.Volume](api_path("volumes"), "volumes"))

    async def remove_volume(self, target: str, name: str) -> t.VolumeRemoved:
        """Remove a volume and its data."""
        return await self._send(changing(t.VolumeRemoved, "DELETE", api_path("volumes", target, name)))

    async def resize_volume(self, target: str, name: str, size_gb: int, *, online: bool = False) -> t.VolumeResized:
        """Grow a volume to ``size_gb`` GiB; return when that is done. ``online``: also while it is in use."""
        path, body = api_path("volumes", target, name, "resize"), {"volume_size_gb": size_gb, "online": online}
        return await self._send(changing(t.VolumeResized, "POST", path, body, requests.RESIZE_TIMEOUT))

    async def adopt_volume(self, target: str, name: str) -> t.VolumeAdopted:
        """Let the service treat a volume that it did not make as its own."""
        return await self._send(changing(t.VolumeAdopted, "POST", api_path("volumes", target, name, "adopt")))

    def replaced_volumes(self) -> AsyncIterator[t.KeptVolume]:
        """Yield the replaced volumes that are kept."""
        return self._listed(Listing[t.KeptVolume](api_path("volumes", "replaced"), "replaced"))

    async def restore_volume(self, target: str, name: str, *, kept_as: str | None = None) -> t.VolumeRestored:
        """Bring a replaced volume back under its name."""
        return await self._send(
            changing(t.VolumeRestored, "POST", api_path("volumes", target, name, "restore"), filled(kept_as=kept_as))
        )

    async def remove_replaced_volume(
        self, target: str, name: str, *, kept_as: str | None = None
    ) -> t.ReplacedVolumeRemoved:
        """Remove a replaced volume that is kept."""
        query = str(httpx.QueryParams(filled(kept_as=kept_as)))
        path = api_path("volumes", target, name, "replaced")
        return await self._send(changing(t.ReplacedVolumeRemoved, "DELETE", f"{path}?{query}" if query else path))

    # --- images ---

    async def images(self) -> list[t.NamedImage]:
        """Return the images that have a name."""
        found: list[t.NamedImage] = (await self._send(get(api_path("images"))))["images"]
        return found

    async def image(self, name: str) -> t.ResolvedImage:
        """Return what the name of an image stands for now. Asks the publisher."""
        return await self._send(Request[t.ResolvedImage]("GET", api_path("images", name), repeatable=True))

    def cached_images(self, *, checksum_prefix: str | None = None) -> AsyncIterator[t.CachedImage]:
        """Yield the images in the cache."""
        params = {"checksum_prefix": checksum_prefix}
        return self._listed(Listing[t.CachedImage](api_path("cache", "images"), "images", params))

    async def fetch_image(
        self,
        *,
        image: str | None = None,
        image_url: str | None = None,
        image_type: str | None = None,
        checksum: str | None = None,
    ) -> t.JobAccepted:
        """Download an image into the cache by a job. A repeat after a lost response makes a second, short job."""
        body = image_fields(image, image_url, image_type, checksum)
        return await self._send(Request[t.JobAccepted]("POST", api_path("cache", "fetch"), body, repeatable=True))

    async def remove_image(self, checksum: str) -> t.CachedImageRemoved:
        """Remove an image from the cache."""
        return await self._send(changing(t.CachedImageRemoved, "DELETE", api_path("cache", "images", checksum)))

    async def pin_image(self, checksum: str) -> t.CachedImagePinned:
        """Protect an image from eviction."""
        return await self._send(
            Request[t.CachedImagePinned]("PUT", api_path("cache", "images", checksum, "pin"), repeatable=True)
        )

    async def unpin_image(self, checksum: str) -> t.CachedImagePinned:
        """Allow the eviction of an image again."""
        return await self._send(
            Request[t.CachedImagePinned]("DELETE", api_path("cache", "images", checksum, "pin"), repeatable=True)
        )

    async def verify_image(self, checksum: str) -> t.CachedImageVerified:
        """Have the server read an image and compare its digest."""
        return await self._send(
            changing(t.CachedImageVerified, "POST", api_path("cache", "images", checksum, "verify"))
        )

    async def prune_cache(self) -> t.CachePruned:
        """Remove every image that is neither pinned nor in use."""
        return await self._send(changing(t.CachePruned, "POST", api_path("cache", "prune")))

    # --- the host and the service ---

    async def targets(self) -> list[t.Target]:
        """Return the block targets."""
        found: list[t.Target] = (await self._send(get(api_path("targets"))))["targets"]
        return found

    async def sources(self) -> list[t.Source]:
        """Return the sources of images."""
        found: list[t.Source] = (await self._send(get(api_path("sources"))))["sources"]
        return found

    async def whoami(self) -> t.Principal:
        """Return who the caller is, and what it may do."""
        return await self._send(Request[t.Principal]("GET", api_path("whoami"), repeatable=True))

    async def health(self) -> t.Health:
        """Return status, version and uptime. Needs no credential."""
        return await self._send(Request[t.Health]("GET", "/health", repeatable=True))

    async def ready(self) -> t.Ready:
        """Return if the service accepts jobs; else ApiError with status 503. Needs no credential."""
        return await self._send(Request[t.Ready]("GET", "/readyz", repeatable=True))

    # --- sending ---

    async def _listed(self, listing: Listing[T]) -> AsyncIterator[T]:
        offset = 0
        while True:
            page = await self._send(listing.page(offset))
            answers.check_complete(page)
            for one in page[listing.key]:
                yield one
            offset += requests.PAGE
            if offset >= page["count"]:
                return

    async def _send(self, request: Request[T]) -> T:
        for pause in requests.REPEAT_PAUSES if request.repeatable else ():
            try:
                return await self._once(request)
            except UnreachableError as error:
                if not error.lost:
                    raise
            await anyio.sleep(pause)
        return await self._once(request)

    async def _once(self, request: Request[T]) -> T:
        limits = timeouts(request.timeout)
        with transport_errors(self._url):
            response = await self._http.request(
                request.method, request.path, json=request.body, headers=dict(request.headers), timeout=limits
            )
        found: Any = answers.read(self._url, response.status_code, response.text, response.headers)
        return found  # type: ignore[no-any-return]
