"""A volume under construction: its names, its export, and the change that gives it its name."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from lvp_target_rbd import names
from lvp_target_rbd.records import Aside, tags_of
from provisioner.contracts import Device, Owner, Replaced, Volume, shielded
from provisioner.contracts.errors import ConvertError, NoSpaceError, TargetUnavailableError, VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lvp_target_rbd.client import Client
    from lvp_target_rbd.export import Export
    from lvp_target_rbd.records import Image
    from provisioner.contracts import Provenance, StageRequest

# Seconds; an export that does not end is killed before.
_ABORT_TIME = 30.0


class Staging:
    """The names and the progress of one staging.

    ``committed``: the new image has its final name. ``clean``: nothing is left to finish or undo.
    """

    def __init__(
        self, request: StageRequest, owner: str, old: Image | None, keep_seconds: float, image_format: str | None = None
    ) -> None:
        self.request = request
        self.owner = owner
        self.token = names.new_token()
        self.name = names.Working("stage", owner, self.token).name
        self.old = old
        self.id = ""
        # Names without the token that a rename of this staging may leave, with the ids to which they lead.
        self.noted: dict[str, str] = {}
        self.committed = False
        self.clean = False
        self._format = image_format
        self._keep_seconds = keep_seconds
        self._aside: Aside | None = None

    def tags(self, provenance: Provenance) -> str:
        """Return the tags of the new image."""
        return tags_of(self.request.name, self.token, self.owner, provenance, self._format)

    def old_change(self, new_id: str) -> dict[str, str] | None:
        """Return what happens to the image that has the name now, as ``publish`` wants it."""
        if self.old is None:
            return None
        now = time.time()
        until = now + self._keep_seconds if self._keep_seconds else 0.0
        request = self.request
        self._aside = Aside(request.name, self.token, request.job_id, self.owner, now, until, new_id)
        to = names.Working("old", self.owner, self.token).name
        return {"id": self.old.id, "to": to, "aside": self._aside.text(), "keep_as": self.kept_as or ""}

    @property
    def kept_as(self) -> str | None:
        """Return the name under which the old image is kept; None if it is removed."""
        return names.KEPT + self.token if self._keep_seconds else None

    @property
    def replaced(self) -> Replaced | None:
        """Return which volume the commit has replaced."""
        if self.old is None or self._aside is None:
            return None
        owner = Owner.of(self.old.provenance)
        return Replaced(self.request.name, owner, self.kept_as, self._aside.until or None)


class Staged:
    """A staged volume, and its commit. ``export`` is None if nothing is to be written."""

    def __init__(self, client: Client, staging: Staging, device: Device, export: Export | None, volume: Volume) -> None:
        self.device = device
        self._client = client
        self._staging = staging
        self._export = export
        self._volume = volume

    async def commit(self, image_digest: str | None) -> Volume:
        """End the export, set the old image aside, rename the new one. See StagedVolume."""
        staging = self._staging
        provenance = replace(staging.request.provenance, image_digest=image_digest)
        if self._export is not None:
            await self._export.close()
        await self._publish(provenance)
        staging.committed = True
        staging.clean = staging.old is None or staging.kept_as is not None
        return replace(self._volume, provenance=provenance, replaced=staging.replaced)

    async def _publish(self, provenance: Provenance) -> None:
        staging = self._staging
        change = staging.old_change(staging.id)
        try:
            await self._client.change(
                "publish",
                staged=staging.name,
                staged_id=staging.id,
                name=staging.request.name,
                tags=staging.tags(provenance),
                old=change,
            )
        except VolumeInUseError as error:
            raise VolumeInUseError(f"{error.message}; it was not changed") from error


@asynccontextmanager
async def watched(
    export: Export, why_stop: Callable[[], Awaitable[str | None]], interval: float
) -> AsyncIterator[None]:
    """End the export when the block is cancelled, because a thread may wait for the cluster in a write to it.

    Calls ``why_stop`` every ``interval`` seconds; if it returns a reason, ends the block so and raises NoSpaceError.
    The block's own error is raised as it is.
    """
    reason: list[str] = []
    failure: list[Exception] = []
    over = False

    async def watch(block: trio.CancelScope) -> None:
        try:
            while not reason:
                await trio.sleep(interval)
                try:
                    answer = await why_stop()
                except TargetUnavailableError:  # the writes themselves fail if it is so
                    continue
                if answer is not None:
                    reason.append(answer)
            block.cancel()
        finally:
            if not over:
                with shielded("end the export", _ABORT_TIME):
                    await export.abort()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as block:
            nursery.start_soon(watch, block)
            try:
                yield
            except Exception as error:  # noqa: BLE001 - carried out of the nursery, which would wrap it
                failure.append(error)
            over = True
        nursery.cancel_scope.cancel()
    if reason and (failure or block.cancelled_caught):
        raise NoSpaceError(f"stopped before the pool ran full: {reason[0]}") from (failure[0] if failure else None)
    if failure:
        raise await explained(failure[0], why_stop) from failure[0]


async def explained(error: Exception, why_stop: Callable[[], Awaitable[str | None]]) -> Exception:
    """Return the error to show: a write that failed because the pool is full only says that it took too long."""
    if not isinstance(error, ConvertError | OSError):
        return error
    try:
        with trio.move_on_after(10):
            if (reason := await why_stop()) is not None:
                return NoSpaceError(f"the pool is full: {reason}")
    except TargetUnavailableError as down:
        return TargetUnavailableError(f"{down.message}; the job had failed with: {error}")
    return error
