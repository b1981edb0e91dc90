"""Which bases there are, and in which order they are removed when room is needed. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvp_target_rbd import names
from lvp_target_rbd.records import SNAPSHOT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lvp_target_rbd.records import Image


def is_base(image: Image) -> bool:
    """Return whether an image can be cloned: it has its name only after its snapshot."""
    return image.name.startswith(names.BASE) and SNAPSHOT in image.snapshots


def bases_in(images: Mapping[str, Image]) -> list[Image]:
    """Return every base."""
    return [image for image in images.values() if is_base(image)]


def eviction_order(images: Mapping[str, Image], used: Mapping[str, float], pinned: Collection[str]) -> list[Image]:
    """Return the bases that may be removed, least recently used first: those without clones, which save no space.

    ``used`` maps a base's name to the time this process last used it; for other hosts, the creation of the newest
    volume with the same image counts. ``pinned`` bases are in use by a job of this process.
    """
    made: dict[object, float] = {}
    for image in images.values():
        if (origin := image.provenance) is not None:
            made[origin.image_digest] = max(made.get(origin.image_digest, 0.0), origin.created_at)

    def last_use(base: Image) -> tuple[float, str]:
        return max(used.get(base.name, 0.0), made.get(base.tags.get("digest"), 0.0)), base.name

    unused = (base for base in bases_in(images) if not base.clones and base.name not in pinned)
    return sorted(unused, key=last_use)
