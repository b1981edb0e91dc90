"""Finds out which volume a job replaces, or has replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioner.contracts import KeepingTarget, Replaced

if TYPE_CHECKING:
    from provisioner.contracts import BlockTarget


async def replaced_by(target: BlockTarget, job_id: str) -> Replaced | None:
    """Return the volume that the job has replaced, if the target keeps it."""
    if not isinstance(target, KeepingTarget):
        return None
    found = next((kept for kept in await target.kept() if kept.job_id == job_id), None)
    return None if found is None else Replaced(found.volume, found.owner, found.kept_as, found.kept_until)


async def would_replace(target: BlockTarget, volume_name: str) -> Replaced | None:
    """Return the volume that a target which keeps none would replace; a KeepingTarget reports it at the commit."""
    if isinstance(target, KeepingTarget):
        return None
    found = await target.find(volume_name)
    return None if found is None else Replaced(found.name, found.owner)
