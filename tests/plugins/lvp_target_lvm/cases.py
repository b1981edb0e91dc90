"""Volumes and inventories for the unit tests, as parsed from LVM's reports."""

from __future__ import annotations

from dataclasses import replace

from lvp_target_lvm import tags
from lvp_target_lvm.report import Group, Inventory, Lv
from provisioner.contracts import GIB, MIB, Provenance

GROUP = Group("vg-uuid", "vg0", 100 * GIB, 50 * GIB, 4 * MIB, 0)
DIGEST = "sha256:" + "cd" * 32


def provenance(job: str = "job-1", digest: str | None = DIGEST, created: float = 1000.0) -> Provenance:
    return Provenance(job, "https://images.example.com/a.qcow2", digest, created)


def plain(name: str, size: int = 10 * GIB, **more: object) -> Lv:
    """Return a volume that this service did not create."""
    made = Lv(f"uuid-{name}", name, size, frozenset({"linear"}), frozenset({"public"}))
    return replace(made, **more)


OWNER = "0123456789ab"


def ours(
    name: str, token: str = "t0", job: str = "job-1", intended: str = "", owner: str = OWNER, **more: object
) -> Lv:
    """Return a volume that this service created; ``intended`` is the final name in its tags."""
    lv = plain(name, **more)
    return replace(lv, tags=(*tags.for_volume(intended or name, token, provenance(job), owner=owner), *lv.tags))


def aside(lv: Lv, key: str, name: str, token: str, job: str, owner: str = OWNER) -> Lv:
    """Return ``lv`` as a job has set it aside."""
    return replace(lv, tags=(*lv.tags, *tags.for_aside(key, name, token, job, owner)))


def base(name: str, digest: str, created: float, pool: str = "pool") -> Lv:
    made = tags.for_volume(name, f"t-{name}", provenance("job-b", digest, created), owner=OWNER, format="qcow2")
    return plain(name, layout=frozenset({"thin", "sparse"}), pool=pool, tags=tuple(made))


def a_pool(**more: object) -> Lv:
    made = plain(
        "pool",
        100 * GIB,
        layout=frozenset({"thin", "pool"}),
        data_percent=10.0,
        metadata_percent=5.0,
        metadata_size=128 * MIB,
        chunk_size=64 * 1024,
        zero=True,
        discards="passdown",
        error_when_full=True,
    )
    return replace(made, **more)


def inventory(*volumes: Lv, **group: object) -> Inventory:
    return Inventory(replace(GROUP, **group), {lv.name: lv for lv in volumes})
