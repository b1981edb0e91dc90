"""Tests of names and of the placement decision."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lvp_target_file.folder import Entry
from lvp_target_file.placement import MAX_NAME, check_name, place
from lvp_target_file.settings import FileSettings
from provisioner.contracts import GIB, Placement
from provisioner.contracts.errors import NoSpaceError, VolumeExistsError, VolumeNameError
from provisioner.contracts.testing import a_provenance, a_request

FILE, FOLDER, LINK = 0o100600, 0o040700, 0o120777


def entry(size=10 * GIB, *, mode=FILE, links=1, ours=True, allocated=0):
    """Return an entry with a made-up status: (mode, ino, dev, nlink, uid, gid, size, times..., blocks)."""
    numbers = (mode, 1, 1, links, 0, 0, size, 0, 0, 0)
    status = os.stat_result(numbers, {"st_blocks": allocated // 512})
    return Entry("web01", Path("web01.raw"), status, a_provenance() if ours else None, size)


def settings(**options):
    return FileSettings("/images", **options)


@pytest.mark.parametrize(
    ("old", "free", "options", "expected"),
    [
        (None, 10 * GIB, {}, Placement.NEW),
        (None, 10 * GIB - 1, {}, NoSpaceError),
        (None, 2 * GIB, {"overcommit": True}, Placement.NEW),
        (None, 2 * GIB - 1, {"overcommit": True}, NoSpaceError),
        (None, 2 * GIB, {"overcommit": True, "preallocate": True}, NoSpaceError),
        (entry(), 10 * GIB, {}, Placement.SWAP),
        (entry(ours=False), 10 * GIB, {}, Placement.SWAP),
        (entry(ours=False), 10 * GIB, {"only_own": True}, VolumeExistsError),
        (entry(ours=True), 10 * GIB, {"only_own": True}, Placement.SWAP),
        (entry(), 10 * GIB, {"replace": "refuse"}, VolumeExistsError),
        (None, 10 * GIB, {"replace": "refuse"}, Placement.NEW),
        (entry(), 10 * GIB, {"replace": "in-place"}, Placement.SWAP),
        (entry(allocated=4 * GIB), 6 * GIB, {"replace": "in-place"}, Placement.IN_PLACE),
        (entry(allocated=4 * GIB), 6 * GIB - 1, {"replace": "in-place"}, NoSpaceError),
        (entry(allocated=4 * GIB), 6 * GIB, {}, NoSpaceError),
        (entry(int(9.5 * GIB)), 10 * GIB, {}, Placement.SWAP),
        (entry(int(9.4 * GIB)), 10 * GIB, {}, VolumeExistsError),
        (entry(int(10.5 * GIB)), 10 * GIB, {}, Placement.SWAP),
        (entry(int(10.6 * GIB)), 10 * GIB, {}, VolumeExistsError),
        (entry(mode=FOLDER), 10 * GIB, {}, VolumeExistsError),
        (entry(mode=LINK), 10 * GIB, {}, VolumeExistsError),
        (entry(links=2), 10 * GIB, {}, VolumeExistsError),
    ],
)
def test_placement(old, free, options, expected):
    request = replace(a_request("web01", 10 * GIB), data_bytes=2 * GIB)
    if isinstance(expected, Placement):
        assert place(request, old, free, settings(**options)) is expected
    else:
        with pytest.raises(expected, match="web01"):
            place(request, old, free, settings(**options))


@pytest.mark.parametrize("name", ["a", "0", "web01", "Web-01_x.raw+1", "a" * MAX_NAME])
def test_check_name_valid(name):
    check_name(name)


@pytest.mark.parametrize(
    "name", ["", ".lvp", "-a", "_a", "a/b", "a\n", "a\0", "a b", "a" * (MAX_NAME + 1), "\u0661", "a:b"]
)
def test_check_name_invalid(name):
    with pytest.raises(VolumeNameError, match="letters, digits"):
        check_name(name)


@pytest.mark.parametrize(
    ("options", "hint"), [({}, True), ({"overcommit": True}, False), ({"preallocate": True}, False)]
)
def test_place_without_room_names_overcommit(options, hint):
    """The hint is given only if the setting would change the answer."""
    request = replace(a_request(), size_bytes=10 * GIB, data_bytes=2 * GIB)
    with pytest.raises(NoSpaceError) as caught:
        place(request, None, GIB, settings(**options))
    assert ("overcommit = true" in caught.value.message) is hint
