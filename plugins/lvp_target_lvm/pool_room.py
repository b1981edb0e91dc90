"""Checks a thin pool's free space, before and while it is written to."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import trio

from provisioner.contracts import GIB
from provisioner.contracts.errors import NoSpaceError, TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lvp_target_lvm.report import Inventory, Lv
    from lvp_target_lvm.settings import ThinSettings

# Bytes for one mapped chunk, as thin_metadata_size estimates them.
_METADATA_PER_CHUNK = 64


def pool_of(settings: ThinSettings, inventory: Inventory) -> Lv:
    """Return the configured pool. Raises TargetUnavailableError if it is missing, not a thin pool or inactive."""
    pool = inventory.volumes.get(settings.pool)
    full = f"{settings.volume_group}/{settings.pool}"
    if pool is None:
        raise TargetUnavailableError(f"thin pool {full} does not exist")
    if not {"thin", "pool"} <= pool.layout:
        raise TargetUnavailableError(f"{full} is not a thin pool")
    if pool.data_percent is None or pool.metadata_percent is None:
        raise TargetUnavailableError(f"thin pool {full} is not active; activate it (lvchange -ay {full})")
    return pool


def why_full(settings: ThinSettings, pool: Lv, data_bytes: int = 0) -> str | None:
    """Return why the pool cannot take ``data_bytes`` more, or None if it can. The pool must be active."""
    name = f"thin pool {settings.volume_group}/{pool.name}"
    if pool.health:
        return f"{name} is not healthy ({pool.health}); repair or extend it"
    chunks = -(-data_bytes // pool.chunk_size) if pool.chunk_size else 0
    data = _after(pool.data_percent, chunks * pool.chunk_size, pool.size)
    metadata = _after(pool.metadata_percent, chunks * _METADATA_PER_CHUNK, pool.metadata_size)
    for what, percent, mark in (
        ("data", data, settings.high_water_data_percent),
        ("metadata", metadata, settings.high_water_metadata_percent),
    ):
        if percent >= mark:
            would = "would be" if data_bytes else "is"
            return f"the {what} space of {name} {would} {percent:.1f}% full, its high-water mark is {mark:g}%"
    return None


def with_reserve(settings: ThinSettings) -> ThinSettings:
    """Return settings with higher marks, for overwriting a volume in place when the pool has reached its marks.

    Overwriting allocates only chunks that the old content did not use. It may use half of the space above the marks.
    """
    return msgspec.structs.replace(
        settings,
        high_water_data_percent=(settings.high_water_data_percent + 100) / 2,
        high_water_metadata_percent=(settings.high_water_metadata_percent + 100) / 2,
    )


def why_too_large(settings: ThinSettings, pool: Lv, size: int) -> str | None:
    """Return why a volume of ``size`` bytes is too large for the pool, or None.

    A volume that the empty pool could not hold is a mistake, not overcommitment.
    """
    if size <= pool.size:
        return None
    return (
        f"a volume of {size / GIB:.2f} GiB is larger than the whole thin pool {settings.volume_group}/{pool.name} "
        f"({pool.size / GIB:.2f} GiB)"
    )


def _after(percent: float | None, more: int, whole: int) -> float:
    return (percent or 0.0) + (100.0 * more / whole if whole else 0.0)


@asynccontextmanager
async def watched(why_stop: Callable[[], Awaitable[str | None]], interval: float) -> AsyncIterator[None]:
    """Call ``why_stop`` every ``interval`` seconds; if it returns a reason, cancel the block and raise NoSpaceError.

    The block's own error is raised as it is, not in an exception group. A failed check is retried; if the group
    really is unavailable, the block's own writes fail soon.
    """
    reason: list[str] = []
    failure: list[Exception] = []

    async def watch(block: trio.CancelScope) -> None:
        while not reason:
            await trio.sleep(interval)
            try:
                answer = await why_stop()
            except TargetUnavailableError:
                continue
            if answer is not None:
                reason.append(answer)
        block.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as block:
            nursery.start_soon(watch, block)
            try:
                yield
            except Exception as error:  # noqa: BLE001 - carried out of the nursery, which would wrap it
                failure.append(error)
        nursery.cancel_scope.cancel()
    if reason and (failure or block.cancelled_caught):
        raise NoSpaceError(f"stopped before the pool ran full: {reason[0]}") from (failure[0] if failure else None)
    if failure:
        raise failure[0]
