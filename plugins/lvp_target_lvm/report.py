"""Parses LVM's JSON reports into a volume group and its volumes. Pure.

LVM writes every value as text: a size in bytes without a unit, a flag as a word or an empty string, a missing device
number as -1. If a report has segment fields, it has one row for each segment of a volume.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from lvp_target_lvm import tags as tagging
from provisioner.contracts.errors import TargetError

GROUP_FIELDS = ("vg_uuid", "vg_name", "vg_size", "vg_free", "vg_extent_size", "vg_missing_pv_count")
VOLUME_FIELDS = (
    "lv_uuid", "lv_name", "lv_size", "lv_layout", "lv_role", "lv_tags", "lv_active", "lv_device_open",
    "lv_permissions", "lv_kernel_major", "lv_kernel_minor", "pool_lv", "origin", "data_percent", "metadata_percent",
    "lv_metadata_size", "lv_health_status", "lv_when_full", "zero", "discards", "chunk_size",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """A volume group. Sizes in bytes."""

    uuid: str
    name: str
    size: int
    free: int
    extent_size: int
    missing_disks: int

    def rounded(self, size: int) -> int:
        """Return ``size`` rounded up to whole extents."""
        return -(-size // self.extent_size) * self.extent_size


@dataclass(frozen=True, slots=True)
class Lv:
    """A logical volume. ``open`` means that its device is open; percentages are known only while it is active."""

    uuid: str
    name: str
    size: int
    layout: frozenset[str] = frozenset()
    role: frozenset[str] = frozenset()
    tags: tuple[str, ...] = ()
    active: bool = True
    open: bool = False
    writable: bool = True
    major: int = -1
    minor: int = -1
    pool: str = ""
    origin: str = ""
    data_percent: float | None = None
    metadata_percent: float | None = None
    metadata_size: int = 0
    health: str = ""
    error_when_full: bool = False
    zero: bool = False
    discards: str = ""
    chunk_size: int = 0

    @property
    def ours(self) -> bool:
        """Whether this service created it."""
        return tagging.is_own(self.tags)

    @property
    def noted(self) -> dict[str, str]:
        """The values of its tags that this service wrote."""
        return tagging.decode(self.tags)

    @property
    def is_pool(self) -> bool:
        return "pool" in self.layout


@dataclass(frozen=True, slots=True)
class Inventory:
    """A snapshot of a volume group's state: the group and its volumes by name."""

    group: Group
    volumes: dict[str, Lv] = field(default_factory=dict)


class _Row(msgspec.Struct):
    """One row of a report; a field that this LVM version omits is empty."""

    vg_uuid: str = ""
    vg_name: str = ""
    vg_size: str = ""
    vg_free: str = ""
    vg_extent_size: str = ""
    vg_missing_pv_count: str = ""
    lv_uuid: str = ""
    lv_name: str = ""
    lv_size: str = ""
    lv_layout: str = ""
    lv_role: str = ""
    lv_tags: str = ""
    lv_active: str = ""
    lv_device_open: str = ""
    lv_permissions: str = ""
    lv_kernel_major: str = ""
    lv_kernel_minor: str = ""
    pool_lv: str = ""
    origin: str = ""
    data_percent: str = ""
    metadata_percent: str = ""
    lv_metadata_size: str = ""
    lv_health_status: str = ""
    lv_when_full: str = ""
    zero: str = ""
    discards: str = ""
    chunk_size: str = ""
    seg_pe_ranges: str = ""


class _Part(msgspec.Struct):
    lv: list[_Row] = []
    vg: list[_Row] = []
    seg: list[_Row] = []


class _Report(msgspec.Struct):
    report: list[_Part]


_DECODER = msgspec.json.Decoder(_Report)


def read(text: str) -> tuple[Group | None, dict[str, Lv]]:
    """Return the group and volumes in a report of ``lvs`` or ``vgs``; the group is None if it has no rows.

    Raises TargetError if it is malformed or covers several groups.
    """
    try:
        rows = _rows(text)
        groups = {row.vg_uuid: _group(row) for row in rows}
        volumes = {row.lv_name: _volume(row) for row in reversed(rows) if row.lv_name}
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise TargetError(f"LVM's report is malformed: {error}") from error
    if len(groups) > 1:
        names = " and ".join(sorted(f"{group.name} ({group.uuid})" for group in groups.values()))
        raise TargetError(f"several volume groups have the same name: {names}; rename one of them")
    return next(iter(groups.values()), None), volumes


def read_extents(text: str, volume: str) -> list[str]:
    """Return the physical extents of a linear volume in a report with ``seg_pe_ranges``, in their order.

    Raises TargetError if it is malformed or has none of them.
    """
    try:
        found = [part for row in _rows(text) if row.lv_name == volume for part in row.seg_pe_ranges.split()]
    except (msgspec.DecodeError, RecursionError) as error:
        raise TargetError(f"LVM's report is malformed: {error}") from error
    if not found:
        raise TargetError(f"LVM did not report the extents of {volume}")
    return found


def _rows(text: str) -> list[_Row]:
    parts = _DECODER.decode(text).report
    return [row for part in parts for row in [*part.vg, *part.lv, *part.seg]]


def _group(row: _Row) -> Group:
    return Group(
        row.vg_uuid,
        row.vg_name,
        int(row.vg_size),
        int(row.vg_free),
        max(1, int(row.vg_extent_size)),
        _whole(row.vg_missing_pv_count, 0),
    )


def _volume(row: _Row) -> Lv:
    active = row.lv_active not in {"", "unknown"}
    return Lv(
        uuid=row.lv_uuid,
        name=row.lv_name,
        size=int(row.lv_size),
        layout=_words(row.lv_layout),
        role=_words(row.lv_role),
        tags=tuple(tag for tag in row.lv_tags.split(",") if tag),
        active=active,
        # Inactive volumes report "unknown". Treat an active volume in an unknown state as open.
        open=row.lv_device_open == "open" or (active and row.lv_device_open != ""),
        writable=not row.lv_permissions.startswith("read-only"),
        major=_whole(row.lv_kernel_major, -1),
        minor=_whole(row.lv_kernel_minor, -1),
        pool=row.pool_lv.strip("[]"),
        origin=row.origin.strip("[]"),
        data_percent=_percent(row.data_percent),
        metadata_percent=_percent(row.metadata_percent),
        metadata_size=_whole(row.lv_metadata_size, 0),
        health=row.lv_health_status,
        error_when_full=row.lv_when_full == "error",
        zero=row.zero == "zero",
        discards=row.discards,
        chunk_size=_whole(row.chunk_size, 0),
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(word for word in text.split(",") if word)


def _whole(text: str, otherwise: int) -> int:
    return int(text) if text else otherwise


def _percent(text: str) -> float | None:
    # Some versions report -1 or "invalid" for an unknown value.
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 100 else None
