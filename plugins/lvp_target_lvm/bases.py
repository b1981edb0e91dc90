"""Lists base volumes and decides the order in which they are evicted. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvp_target_lvm import names

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lvp_target_lvm.report import Inventory, Lv


def bases_in(inventory: Inventory, pool: str) -> list[Lv]:
    """Return every committed base of the pool."""
    return [
        lv
        for lv in inventory.volumes.values()
        if lv.ours and lv.name.startswith(names.BASE) and lv.pool == pool and "digest" in lv.noted
    ]


def eviction_order(inventory: Inventory, pool: str, used: Mapping[str, float], pinned: Collection[str]) -> list[Lv]:
    """Return the bases that may be evicted, least recently used first.

    ``used`` maps a base's name to the time this process last used it. For use before the process started, the
    creation time of the newest volume with the same image counts. ``pinned`` bases are in use by a job.
    """
    made: dict[str, float] = {}
    for lv in inventory.volumes.values():
        if lv.ours and (digest := lv.noted.get("digest")):
            made[digest] = max(made.get(digest, 0.0), _created(lv))

    def last_use(base: Lv) -> tuple[float, str]:
        return max(used.get(base.name, 0.0), made[base.noted["digest"]]), base.name

    return sorted((base for base in bases_in(inventory, pool) if base.name not in pinned), key=last_use)


def _created(lv: Lv) -> float:
    try:
        return float(lv.noted.get("created", ""))
    except ValueError:
        return 0.0
