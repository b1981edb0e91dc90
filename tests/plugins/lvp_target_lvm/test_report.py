from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvp_target_lvm import report
from provisioner.contracts import GIB, MIB
from provisioner.contracts.errors import TargetError

GROUP = {
    "vg_uuid": "u1", "vg_name": "vg0", "vg_size": str(10 * GIB), "vg_free": str(GIB), "vg_extent_size": "4194304",
    "vg_missing_pv_count": "0",
}  # fmt: skip


def a_report(*rows: dict[str, str], kind: str = "lv") -> str:
    return json.dumps({"report": [{kind: [{**GROUP, **row} for row in rows]}]})


def a_row(name: str, **more: str) -> dict[str, str]:
    return {"lv_uuid": f"u-{name}", "lv_name": name, "lv_size": str(GIB), "lv_layout": "linear", **more}


def test_read_a_volume() -> None:
    row = a_row(
        "web01", lv_role="public,snapshot,thinsnapshot", lv_layout="thin,sparse", lv_tags="lvp,lvp.job=7",
        lv_active="active", lv_device_open="open", lv_permissions="writeable", lv_kernel_major="254",
        lv_kernel_minor="3", pool_lv="pool", origin="lvp.base.ab", data_percent="12.50", metadata_percent="",
        lv_metadata_size="", zero="", discards="", chunk_size="0",
    )  # fmt: skip
    group, volumes = report.read(a_report(row))
    assert group is not None
    assert (group.name, group.free, group.extent_size) == ("vg0", GIB, 4 * MIB)
    lv = volumes["web01"]
    assert lv.open
    assert lv.active
    assert lv.writable
    assert (lv.major, lv.minor, lv.pool, lv.origin) == (254, 3, "pool", "lvp.base.ab")
    assert (lv.data_percent, lv.metadata_percent) == (12.5, None)
    assert lv.tags == ("lvp", "lvp.job=7")
    assert lv.ours
    assert lv.noted == {"job": "7"}


def test_read_an_inactive_volume() -> None:
    row = a_row("pool", lv_layout="thin,pool", lv_active="", lv_device_open="", data_percent="", lv_kernel_major="-1")
    lv = report.read(a_report(row))[1]["pool"]
    assert (lv.active, lv.open, lv.data_percent, lv.major, lv.is_pool) == (False, False, None, -1, True)


def test_read_an_unknown_open_state_as_open() -> None:
    assert report.read(a_report(a_row("a", lv_active="active", lv_device_open="unknown")))[1]["a"].open
    assert not report.read(a_report(a_row("a", lv_active="", lv_device_open="unknown")))[1]["a"].open


def test_read_a_volume_of_several_segments() -> None:
    volumes = report.read(a_report(a_row("a", zero="zero"), a_row("a"), a_row("b")))[1]
    assert sorted(volumes) == ["a", "b"]
    assert volumes["a"].zero


def test_read_without_volumes_or_groups() -> None:
    assert report.read(a_report({}, kind="vg"))[0] is not None
    assert report.read('{"report":[{"lv":[]}],"log":[]}') == (None, {})


def test_read_two_groups_with_one_name() -> None:
    with pytest.raises(TargetError, match="several volume groups"):
        report.read(a_report(a_row("a"), a_row("b", vg_uuid="u2")))


@pytest.mark.parametrize(
    "text",
    ["", "lvs: oops", "[]", '{"report":[{"lv":[{"lv_name":7}]}]}', a_report(a_row("a", lv_size="1.00g")), "lvs" + "{}"],
)
def test_read_a_malformed_report(text: str) -> None:
    with pytest.raises(TargetError, match="malformed"):
        report.read(text)


@given(st.text())
def test_read_any_text(text: str) -> None:
    try:
        report.read(text)
    except TargetError:
        return


VALUES = st.text(max_size=12) | st.sampled_from(["", "-1", "unknown", "active", "100.00", "[x]", "a,b", ",,"])


@given(st.lists(st.dictionaries(st.sampled_from([*report.VOLUME_FIELDS, *report.GROUP_FIELDS]), VALUES), max_size=4))
def test_read_any_row(rows: list[dict[str, str]]) -> None:
    try:
        _, volumes = report.read(json.dumps({"report": [{"lv": rows}]}))
    except TargetError:
        return
    assert all(name == lv.name for name, lv in volumes.items())


NAMES = st.from_regex(r"[a-z][a-z0-9_.+-]{0,20}", fullmatch=True)


@given(st.dictionaries(NAMES, st.tuples(st.integers(0, 2**60), st.booleans(), st.booleans()), min_size=1))
def test_read_finds_every_volume(made: dict[str, tuple[int, bool, bool]]) -> None:
    rows = [
        a_row(name, lv_size=str(size), lv_active="active" * active, lv_device_open="open" * opened)
        for name, (size, active, opened) in made.items()
    ]
    volumes = report.read(a_report(*rows))[1]
    assert {name: (lv.size, lv.active, lv.open) for name, lv in volumes.items()} == made


@given(st.integers(0, 2**50), st.sampled_from([2**12, 2**22, 2**25]))
def test_rounded_to_whole_extents(size: int, extent: int) -> None:
    rounded = report.Group("u", "vg0", 0, 0, extent, 0).rounded(size)
    assert rounded % extent == 0
    assert 0 <= rounded - size < extent


def test_read_extents() -> None:
    """A volume in two pieces, on two disks, beside another one."""
    rows = [
        {"lv_name": "web01", "seg_pe_ranges": "/dev/vdb:10-19"},
        {"lv_name": "other", "seg_pe_ranges": "/dev/vdb:0-9"},
        {"lv_name": "web01", "seg_pe_ranges": "/dev/vdc:3-3"},
    ]
    text = json.dumps({"report": [{"seg": rows}]})
    assert report.read_extents(text, "web01") == ["/dev/vdb:10-19", "/dev/vdc:3-3"]
    for malformed in ("{", json.dumps({"report": []})):
        with pytest.raises(TargetError):
            report.read_extents(malformed, "web01")
