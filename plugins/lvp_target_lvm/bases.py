"""Base volumes: which there are, and which go first when room is needed. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvp_target_lvm import names

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lvp_target_lvm.report import Inventory, Lv


def bases_in(inventory: Inventory, pool: str) -> list[Lv]:
    """Every committed base of the pool."""
    return [
        lv
        for lv in inventory.volumes.values()
        if lv.ours and lv.name.startswith(names.BASE) and lv.pool == pool and "digest" in lv.noted
    ]


def eviction_order(inventory: Inventory, pool: str, used: Mapping[str, float], pinned: Collection[str]) -> list[Lv]:
    """The bases that may go, least recently used first.

    ``used`` is when this process last used a base, by its name; what happened before it started is told by the
    youngest volume with the base's image. ``pinned`` ones are under a job.
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
