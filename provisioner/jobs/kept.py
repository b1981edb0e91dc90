"""Kept volumes: restores, adopts and removes volumes for clients, and removes kept ones when their time is up."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts import KeepingTarget, KeptVolume, Provenance, due
from provisioner.contracts.errors import ConflictError, InvalidRequestError, NotFoundError
from provisioner.jobs.feed import VolumeChange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from provisioner.contracts import Volume
    from provisioner.jobs.feed import Feed
    from provisioner.jobs.reservations import Reservations
    from provisioner.pipeline.pipeline import Pipeline

log = structlog.get_logger(__name__)

# Seconds between searches for kept volumes whose time is up. They are kept for days; one in use is tried again as soon.
_EVERY = 600.0


class KeptVolumes:
    """What may be done with the kept volumes of all targets. A kept volume's name is reserved like a volume's.

    ``wall`` returns the time, None while the clock may be wrong: no volume's time is up then.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        reservations: Reservations,
        feed: Feed,
        wall: Callable[[], float | None] = time.time,
    ) -> None:
        self._pipeline, self._reservations, self._feed = pipeline, reservations, feed
        self.wall = wall

    async def restore(self, target_name: str, volume_name: str, kept_as: str | None) -> tuple[str, Volume]:
        """Give a kept volume its name again; return its kept name and the volume, with what it replaced.

        ``kept_as`` may be None if one volume of that name is kept. Raises NotFoundError, InvalidRequestError,
        ConflictError while a job works on the volume, VolumeInUseError.
        """
        target = self._target(target_name)
        doing = f"the volume {volume_name} is being restored"
        with self._reservations.holding(target_name, volume_name, doing):
            kept = _chosen(await target.kept(), target_name, volume_name, kept_as)
            with self._reservations.holding(target_name, kept.kept_as, doing):
                await self._pipeline.check_guards(target, volume_name)
                volume = await target.restore(kept.kept_as, str(uuid.uuid4()))
        replaced = volume.replaced
        log.info(
            "volume restored", target=target_name, volume=volume_name, owner=volume.owner, kept_as=kept.kept_as,
            replaced=replaced.owner if replaced else None, replaced_kept_as=replaced.kept_as if replaced else None,
        )  # fmt: skip
        self._feed.publish("volume.restored", VolumeChange.of(volume, kept.kept_as))
        return kept.kept_as, volume

    async def remove(self, target_name: str, volume_name: str, kept_as: str | None) -> KeptVolume:
        """Remove a kept volume and its data for good; return it.

        ``kept_as`` may be None if one volume of that name is kept. Raises NotFoundError, InvalidRequestError,
        ConflictError while it is being restored or a job works on the volume, VolumeInUseError.
        """
        target = self._target(target_name)
        doing = f"a replaced volume {volume_name} is being removed"
        # Until a job has ended, its rollback may need what it has replaced.
        with self._reservations.holding(target_name, volume_name, doing):
            kept = _chosen(await target.kept(), target_name, volume_name, kept_as)
            with self._reservations.holding(target_name, kept.kept_as, doing):
                await target.remove_kept(kept.kept_as)
        log.info("kept volume removed", target=target_name, volume=volume_name, owner=kept.owner, kept_as=kept.kept_as)
        self._publish_gone(target_name, kept)
        return kept

    async def adopt(self, target_name: str, volume_name: str) -> Volume:
        """Make a foreign volume ours; its content stays as it is.

        Raises NotFoundError, ConflictError while a job works on the volume, VolumeExistsError if it is ours already.
        """
        target = self._target(target_name)
        with self._reservations.holding(target_name, volume_name, f"the volume {volume_name} is being adopted"):
            adopted = Provenance(str(uuid.uuid4()), "", None, time.time())
            volume = await target.adopt(volume_name, adopted)
        log.info("volume adopted", target=target_name, volume=volume_name)
        self._feed.publish("volume.adopted", VolumeChange.of(volume))
        return volume

    async def expire(self) -> None:
        """Remove kept volumes when their time is up, now and periodically, until cancelled."""
        while True:
            for name, target in self._pipeline.back_ends.targets.items():
                if isinstance(target, KeepingTarget):
                    await self._expire(name, target)
            await trio.sleep(_EVERY)

    async def _expire(self, name: str, target: KeepingTarget) -> None:
        """Remove the kept volumes of one target whose time is up. One that cannot be removed now is tried again."""
        now = self.wall()
        if now is None:
            return
        try:
            over = due(await target.kept(), now)
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the other targets must go on
            log.warning("kept volumes could not be listed; retrying later", target=name, reason=str(error))
            return
        for kept in over:
            about = {"target": name, "kept_as": kept.kept_as, "volume": kept.volume, "owner": kept.owner}
            try:
                doing = f"{kept.kept_as} is being removed: it has expired"
                with (
                    self._reservations.holding(name, kept.volume, doing),
                    self._reservations.holding(name, kept.kept_as, doing),
                ):
                    await target.remove_kept(kept.kept_as)
            except (NotFoundError, ConflictError):  # removed, being restored, or a job works on the volume
                continue
            except Exception as error:  # noqa: BLE001 - as above
                log.warning("an expired volume could not be removed; retrying later", **about, reason=str(error))
            else:
                log.info("kept volume removed: its time is up", **about)
                self._publish_gone(name, kept)

    def _publish_gone(self, target_name: str, kept: KeptVolume) -> None:
        gone = VolumeChange(target=target_name, name=kept.volume, kept_as=kept.kept_as)
        self._feed.publish("volume.expired", gone)

    def _target(self, name: str) -> KeepingTarget:
        target = self._pipeline.back_ends.targets.get(name)
        if target is None:
            raise NotFoundError(f"no block target {name!r} is configured")
        if not isinstance(target, KeepingTarget):
            raise InvalidRequestError(f"target {name} cannot keep, restore or adopt volumes")
        return target


def _chosen(kept: Sequence[KeptVolume], target: str, volume_name: str, kept_as: str | None) -> KeptVolume:
    """Return the kept volume that is meant."""
    found = [one for one in kept if one.volume == volume_name and kept_as in {None, one.kept_as}]
    if not found:
        which = f" as {kept_as!r}" if kept_as else ""
        raise NotFoundError(f"target {target} keeps no volume {volume_name}{which}")
    if len(found) > 1:
        names = ", ".join(one.kept_as for one in sorted(found, key=lambda one: one.replaced_at))
        raise InvalidRequestError(f"kept_as must say which: {volume_name} is kept as {names}")
    return found[0]
