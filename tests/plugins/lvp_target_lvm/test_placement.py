from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvp_target_lvm import LvmSettings
from lvp_target_lvm.placement import place, snapshots_of
from provisioner.contracts import GIB, Placement, StageRequest
from provisioner.contracts.errors import NoSpaceError, VolumeExistsError, VolumeInUseError
from tests.plugins.lvp_target_lvm.cases import a_pool, aside, inventory, ours, plain, provenance

if TYPE_CHECKING:
    from lvp_target_lvm.report import Lv

SETTINGS = LvmSettings(volume_group="vg0")


def placed(*volumes: Lv, no_room: str | None = None, size: int = 10 * GIB, **settings: object) -> Placement:
    return place(
        LvmSettings(volume_group="vg0", **settings),
        inventory(*volumes),
        StageRequest("web01", size, provenance()),
        fits_kind=lambda lv: lv.layout == {"linear"},
        no_room=no_room,
    ).placement


def test_place_a_new_volume() -> None:
    assert placed(plain("web02")) is Placement.NEW
    with pytest.raises(NoSpaceError, match="full up"):
        placed(no_room="full up")


@pytest.mark.parametrize("old", [plain("web01"), ours("web01")])
def test_place_swaps_a_fitting_volume(old: Lv) -> None:
    assert placed(old) is Placement.SWAP


def test_place_in_place_only_without_room() -> None:
    assert placed(plain("web01"), replace="in-place") is Placement.SWAP
    assert placed(plain("web01"), replace="in-place", no_room="full up") is Placement.IN_PLACE
    with pytest.raises(NoSpaceError, match=r"full up; .* volume web01 is kept"):
        placed(plain("web01"), no_room="full up")


def test_place_with_only_own() -> None:
    assert placed(ours("web01"), only_own=True) is Placement.SWAP
    with pytest.raises(VolumeExistsError, match="only_own"):
        placed(plain("web01"), only_own=True)


@pytest.mark.parametrize(
    ("old", "why"),
    [
        (a_pool(name="web01"), "is a pool"),
        (plain("web01", layout=frozenset({"raid", "raid1"})), r"another type \(raid,raid1\)"),
        (plain("web01", active=False), "not active"),
        (plain("web01", writable=False), "read-only"),
        (plain("web01", health="partial"), "partial"),
        (plain("web01", role=frozenset({"public", "origin", "thickorigin"})), "snapshots"),
        (plain("web01", role=frozenset({"public", "snapshot", "thicksnapshot"})), "snapshots"),
        (plain("web01", size=11 * GIB), "11.00 GiB, more than 5%"),
        (plain("web01", size=9 * GIB), "9.00 GiB, more than 5%"),
    ],
)
def test_place_refuses_with_the_reason(old: Lv, why: str) -> None:
    for room in (None, "full up"):
        with pytest.raises(VolumeExistsError, match=why):
            placed(old, no_room=room, replace="in-place")


def test_place_with_replace_refuse() -> None:
    with pytest.raises(VolumeExistsError, match="refuse"):
        placed(ours("web01"), replace="refuse")


@pytest.mark.parametrize("old", [plain("web01", open=True), aside(plain("web01"), "old", "web01", "t1", "job-9")])
@pytest.mark.parametrize("replacing", ["swap", "in-place"])
def test_place_refuses_a_volume_in_use(old: Lv, replacing: str) -> None:
    for room in (None, "full up"):
        with pytest.raises(VolumeInUseError):
            placed(old, no_room=room, replace=replacing)


@given(st.integers(1, 40), st.floats(-0.2, 0.2))
def test_place_with_the_size_tolerance(gib: int, off: float) -> None:
    size = round(gib * GIB * (1 + off))
    allowed = max(0.05 * gib * GIB, 4 * 1024**2 - 1)
    old = replace(plain("web01"), size=size)
    if abs(size - gib * GIB) <= allowed:
        assert placed(old, size=gib * GIB) is Placement.SWAP
    else:
        with pytest.raises(VolumeExistsError):
            placed(old, size=gib * GIB)


def test_snapshots_of_thin_volumes() -> None:
    origin = plain("web01", role=frozenset({"public", "origin", "thinorigin"}))
    snapshot = plain("backup", origin="web01", role=frozenset({"public", "snapshot", "thinsnapshot"}))
    assert snapshots_of(origin, inventory(origin, snapshot)) == "backup"
    assert snapshots_of(snapshot, inventory(origin, snapshot)) == ""
