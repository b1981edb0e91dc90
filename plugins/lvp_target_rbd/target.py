"""The target ``rbd``: looks up, lists, stages, replaces, removes, grows and recovers volumes in a pool of Ceph.

Several hosts work on one pool. What each leaves unfinished has its installation's id in its name, and only that
installation finishes or undoes it.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from lvp_target_rbd import names
from lvp_target_rbd.client import LONG, Client
from lvp_target_rbd.diagnostics import findings
from lvp_target_rbd.export import Export, Exports
from lvp_target_rbd.placement import Plan, capacity_of, place, rounded, why_no_room, why_not_removed
from lvp_target_rbd.records import Aside, images_of
from lvp_target_rbd.recovery import LOOK_AGAIN, RecoveringPool
from lvp_target_rbd.staging import Staged, Staging, watched
from provisioner.contracts import Capacity, Device, Placement, Volume, check_growth, undoing
from provisioner.contracts.errors import (
    NoSpaceError,
    NotFoundError,
    TargetUnavailableError,
    VolumeExistsError,
    VolumeInUseError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from lvp_target_rbd.records import Image
    from lvp_target_rbd.settings import RbdSettings
    from provisioner.contracts import BackEndContext, Finding, StagedVolume, StageRequest

# Any number of installations share a pool, so the lock only keeps the installation's id.
LOCKS = Path("/run/lock/libvirt-volume-provisioner")


class RbdTarget(RecoveringPool):
    """Images in one pool and namespace."""

    def __init__(self, settings: RbdSettings, context: BackEndContext) -> None:
        self.name = context.name
        self._settings = settings
        self._client = Client(settings)
        self._exports = Exports(context.state_directory / "rbd" / context.name, settings)
        # Tokens of stagings in progress; recovery leaves their images alone.
        self._live: set[str] = set()
        self._open: set[Export] = set()
        place = settings.place.replace("/", ".")
        self._lock = context.place_lock(LOCKS / f"rbd.{place}", f"the pool {settings.place}", shared=True)

    # --- lookup ---

    def check_name(self, volume: str) -> None:
        names.check(volume)

    async def find(self, volume: str) -> Volume | None:
        if not names.is_volume_name(volume) or not volume:
            return None
        image = (await self._client.look(volume)).get(volume)
        return None if image is None or image.broken else self._as_volume(image)

    async def list(self) -> Sequence[Volume]:
        images = (await self._client.inventory()).values()
        return [self._as_volume(image) for image in images if image.is_volume and image.provenance is not None]

    async def capacity(self) -> Capacity:
        images = await self._client.inventory()
        return await self._space(self._freeable(images))

    async def check(self) -> None:
        await self._space()

    async def placement(self, request: StageRequest) -> Placement:
        self.check_name(request.name)
        return (await self._plan(request))[0].placement

    async def diagnose(self) -> Sequence[Finding]:
        return await findings(self._client, self._settings)

    async def aclose(self) -> None:
        for export in list(self._open):
            await export.abort()
        self._lock.release()

    async def _claim(self) -> str:
        """Return this installation's id."""
        return await trio.to_thread.run_sync(self._lock.take)

    async def _space(self, freeable: int = 0) -> Capacity:
        pool = self._settings.data_pool or self._settings.pool
        return capacity_of(await self._client.call("space", pool=pool), freeable)

    async def _plan(self, request: StageRequest) -> tuple[Plan, Capacity]:
        """Return the placement of ``request``, and the pool's space before it."""
        pool = self._settings.data_pool or self._settings.pool
        found = await self._client.call("survey", pool=pool, names=[request.name])
        old, space = images_of(found["images"]).get(request.name), capacity_of(found["space"])
        plan = place(self._settings, old, request, await self._no_room_even_so(request, space))
        return (plan if plan.old is None else Plan(plan.placement, await self._once_closed(plan.old))), space

    async def _once_closed(self, image: Image) -> Image:
        """Return the image once no client has it open: the watch of a client that died ends after a while.

        Raises VolumeInUseError if it still is open then, VolumeExistsError if another image has the name.
        """
        deadline = trio.current_time() + self._settings.stale_client_wait
        while image.watchers:
            if trio.current_time() >= deadline:
                raise VolumeInUseError(
                    f"volume {self._settings.place}/{image.name} is in use by the client {', '.join(image.watchers)} "
                    "and was not changed"
                )
            await trio.sleep(LOOK_AGAIN)
            found = (await self._client.look(image.name)).get(image.name)
            if found is None or found.id != image.id:
                raise VolumeExistsError(f"volume {self._settings.place}/{image.name} was replaced meanwhile")
            image = found
        return image

    # --- room ---

    def _why_no_room(self, space: Capacity, request: StageRequest, more: int = 0) -> str | None:
        return why_no_room(self._settings, space, request.size_bytes, (request.data_bytes or 0) - more)

    async def _no_room_even_so(self, request: StageRequest, space: Capacity) -> str | None:
        """Return why there is no room for ``request`` even without what may be removed for it, or None."""
        reason = self._why_no_room(space, request)
        if reason is None:
            return None
        return self._why_no_room(space, request, self._spare(await self._client.inventory())) and reason

    def _spare(self, images: dict[str, Image]) -> int:
        """Return the bytes that removing what may be removed for a job frees."""
        return self._freeable(images)

    def _dispensable(self, images: dict[str, Image]) -> Sequence[Image]:
        """Return what may be removed for a job, in this order."""
        return self._removable(images)

    async def _make_room(self, request: StageRequest, space: Capacity) -> None:
        """Remove what may be removed, as long as ``request`` does not fit. Raises NoSpaceError."""
        reason = self._why_no_room(space, request)
        if reason is None:
            return
        for image in self._dispensable(await self._client.inventory()):
            try:
                await self._remove_image(image, request.job_id)
            except (NotFoundError, VolumeExistsError, VolumeInUseError):
                continue
            reason = self._why_no_room(await self._space(), request)
            if reason is None:
                return
        raise NoSpaceError(reason)

    async def _why_stop(self) -> str | None:
        space = await self._space()
        return why_no_room(self._settings, space, 0, 0)

    # --- staging ---

    @asynccontextmanager
    async def stage(self, request: StageRequest, *, verified: bool) -> AsyncIterator[StagedVolume]:  # noqa: ARG002
        self.check_name(request.name)
        plan, space = await self._plan(request)
        await self._make_room(request, space)
        staging = await self._new_staging(request, plan.old)
        async with self._settled(staging), self._exported(staging, rounded(request.size_bytes)) as staged:
            yield staged

    async def _new_staging(self, request: StageRequest, old: Image | None) -> Staging:
        keep = 0.0
        if old is not None:
            keep = max(self.keep_time(self._as_volume(old)), request.keep_seconds)
        return Staging(request, await self._claim(), old, keep)

    @asynccontextmanager
    async def _exported(self, staging: Staging, size: int, make: type[Staged] = Staged) -> AsyncIterator[Staged]:
        """Create the staged image and make it a local file."""
        await self._create(staging, size)
        async with (
            self._exports.exported(staging.name, staging.token) as export,
            watched(export, self._why_stop, self._settings.watch_interval),
        ):
            self._open.add(export)
            try:
                yield self._staged(staging, Device(str(export.path), size, reads_zero=True), export, make)
            finally:
                self._open.discard(export)

    def _staged(self, staging: Staging, device: Device, export: Export | None, make: type[Staged] = Staged) -> Staged:
        name = staging.request.name
        volume = Volume(name, self.name, f"rbd:{self._settings.place}/{name}", device.size_bytes)
        return make(self._client, staging, device, export, volume)

    async def _create(self, staging: Staging, size: int) -> None:
        try:
            made = await self._client.call(
                "create",
                name=staging.name,
                size=size,
                tags=staging.tags(staging.request.provenance),
                data_pool=self._settings.data_pool,
            )
        except NotFoundError as error:
            raise TargetUnavailableError(f"{error.message}; does the namespace exist?") from error
        staging.id = made["id"]

    @asynccontextmanager
    async def _settled(self, staging: Staging) -> AsyncIterator[None]:
        """Finish or undo the staging on exit, however the block ends."""
        async with self._working_on(staging.token, staging.noted):
            try:
                yield
            finally:
                if not staging.clean:
                    with undoing(f"clean up volume {staging.request.name}", LONG):
                        await self._clean_up(staging)
                        staging.clean = True
                with undoing("forget the work on a volume"):
                    await trio.to_thread.run_sync(self._exports.settle, staging.token)

    @asynccontextmanager
    async def _working_on(self, token: str, noted: Mapping[str, str] | None = None) -> AsyncIterator[None]:
        """Record the token and what is ``noted`` with it; keep recovery away from its images until the block ends."""
        await trio.to_thread.run_sync(self._exports.note, token, noted or {})
        self._live.add(token)
        try:
            yield
        finally:
            self._live.discard(token)

    # --- removal ---

    async def remove(self, volume: str) -> None:
        image = await self._own(volume)
        if (refusal := why_not_removed(self._settings, image)) is not None:
            raise VolumeInUseError(refusal)
        await self._remove_image(await self._once_closed(image), "")

    async def _remove_image(self, image: Image, job_id: str) -> None:
        """Take the image's name away, then remove it. A client that opens it in between keeps it."""
        owner, token = await self._claim(), names.new_token()
        to = names.Working("gone", owner, token).name
        # A kept image already has a note, and keeps it in case it has to stay after all.
        noted = image.name.startswith(names.KEPT)
        aside = "" if noted else Aside(image.name, token, job_id, owner, time.time(), 0.0).text()
        async with self._working_on(token):
            await self._client.change("discard", name=image.name, image_id=image.id, to=to, aside=aside)
            await trio.to_thread.run_sync(self._exports.settle, token)

    async def _own(self, volume: str) -> Image:
        """Return a volume that this service created. Raises NotFoundError."""
        image = (await self._client.look(volume)).get(volume) if volume else None
        if image is None or not image.is_volume or image.provenance is None:
            raise NotFoundError(f"target {self.name} has no volume {volume} that this service created")
        return image

    # --- resizing ---

    async def resize(self, volume: str, size_bytes: int, *, online: bool = False) -> Volume:
        image = await self._own(volume)
        size = rounded(size_bytes)
        check_growth(self._as_volume(image), size)
        if size > image.size:
            space = await self._space()
            if (refusal := why_no_room(self._settings, space, size, 0)) is not None:
                raise NoSpaceError(refusal)
            if not online:
                image = await self._once_closed(image)
            await self._client.change("resize", name=volume, image_id=image.id, size=size, online=online)
        return self._as_volume((await self._client.look(volume))[volume])

    def _as_volume(self, image: Image) -> Volume:
        return image.volume(self.name, self._settings.place)
