from __future__ import annotations

import pytest

from lvp_target_lvm.errors import Meaning, as_error, meaning_of
from provisioner.contracts.errors import (
    NoSpaceError,
    NotFoundError,
    TargetError,
    TargetUnavailableError,
    VolumeExistsError,
    VolumeInUseError,
)

# Messages as lvm2 2.03 prints them.
MESSAGES = [
    (Meaning.NO_GROUP, '  Volume group "vg0" not found\n  Cannot process volume group vg0'),
    (Meaning.NO_VOLUME, '  Failed to find logical volume "vg0/web01"'),
    (Meaning.NO_VOLUME, "  Logical volume lvp.base.ab not found in volume group vg0."),
    (Meaning.NO_SPACE, '  Volume group "vg0" has insufficient free space (60 extents): 256 required.'),
    (Meaning.NO_SPACE, "  Insufficient free space: 256 extents needed, but only 60 available"),
    (Meaning.NO_SPACE, "  Cannot create new thin volume, free space in thin pool vg0/pool reached threshold."),
    (Meaning.NO_SPACE, "  Free space in pool vg0/pool is above threshold, new volumes are not allowed."),
    (Meaning.NO_SPACE, "  VG vg0 1024 metadata on /dev/vdb (521 bytes) too large for circular buffer (512 bytes)"),
    (Meaning.BUSY, "  Logical volume vg0/web01 in use."),
    (Meaning.BUSY, "  Logical volume vg0/web01 contains a filesystem in use."),
    (Meaning.BUSY, "  Logical volume vg0/web01 is used by another device."),
    (Meaning.BUSY, "  device-mapper: remove ioctl on vg0-web01 failed: Device or resource busy"),
    (Meaning.EXISTS, '  Logical Volume "web01" already exists in volume group "vg0"'),
    (
        Meaning.LOCKED,
        "  /run/lock/lvm/V_vg0:aux: flock failed: Resource temporarily unavailable\n  Can't get lock for vg0.\n"
        "  Cannot process volume group vg0",
    ),
    (Meaning.OTHER, "  Read-only locking type set. Write locks are prohibited."),
    (Meaning.OTHER, "  WARNING: device already in use\n  Internal error: no"),
    (Meaning.OTHER, ""),
]


@pytest.mark.parametrize(("meaning", "words"), MESSAGES)
def test_meaning_of_a_message(meaning: Meaning, words: str) -> None:
    assert meaning_of(words) is meaning


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (MESSAGES[0][1], TargetUnavailableError),
        (MESSAGES[1][1], NotFoundError),
        (MESSAGES[3][1], NoSpaceError),
        (MESSAGES[8][1], VolumeInUseError),
        (MESSAGES[12][1], VolumeExistsError),
        (MESSAGES[13][1], TargetUnavailableError),
        (MESSAGES[14][1], TargetError),
    ],
)
def test_as_error_quotes_lvm(words: str, kind: type[Exception]) -> None:
    error = as_error("lvcreate", 5, words)
    assert type(error) is kind
    assert words.splitlines()[-1].strip() in error.message
    assert error.message.startswith("lvcreate failed: ")


def test_as_error_with_another_exit_status() -> None:
    assert as_error("lvs", 3, "").message == "lvs failed (exit status 3): no output on stderr"
