"""The service is killed, or the guest's power is cut, at twenty points of copy, clone, swap and eviction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.guest.outside.service.remote import GROUPS, device

if TYPE_CHECKING:
    from tests.guest.outside.service.remote import Remote

BASES = 1

# Shell patterns that match LVM commands.
MADE = "lvcreate*"
DIGEST = "lvchange*lvp.digest=*"
SET_ASIDE = "lvrename* web01 lvp.old.*"
COMMITTED = "lvrename* lvp.stage.* web01"
REMOVED = "lvremove*lvp.old.*"
EVICTED = "lvremove*lvp.base.*"
BASE_MADE = "lvcreate*--thinpool*"
FROZEN = "lvchange*-pr -ky*"
PUBLISHED = "lvrename* lvp.base.*"
SNAPSHOT = "lvcreate* -s *"
EXTENDED = "lvextend*"


@dataclass(frozen=True)
class Point:
    """A point of a job. With ``base`` the pool already has the image's base, so that the job only clones."""

    target: str
    after: str
    end: str = "kill"
    delay: float = 0
    base: bool = True


# The first points of each list are part of every run; the others take too long for that.
KILLS = [
    Point("plain", MADE, delay=1),  # during the copy
    Point("plain", COMMITTED),
    Point("thin", EVICTED, base=False),
    Point("thin", PUBLISHED, base=False),
    Point("thin", EXTENDED),
    Point("plain", MADE),
    Point("plain", DIGEST),
    Point("plain", SET_ASIDE),
    Point("plain", REMOVED),
    Point("thin", BASE_MADE, delay=1, base=False),
    Point("thin", FROZEN, base=False),
    Point("thin", SNAPSHOT),
    Point("thin", SET_ASIDE),
    Point("thin", COMMITTED),
]
CUTS = [
    Point("plain", SET_ASIDE, "power cut"),
    Point("thin", EVICTED, "power cut", base=False),
    Point("plain", MADE, "power cut", delay=1),
    Point("thin", BASE_MADE, "power cut", delay=1, base=False),
    Point("thin", EXTENDED, "power cut"),
    Point("thin", SET_ASIDE, "power cut"),
]
OFTEN = [*KILLS[:5], *CUTS[:2]]


@pytest.fixture(scope="module")
def held(remote: Remote) -> dict[str, str]:
    """The disk that each target's volume contains."""
    for target in GROUPS:
        job = remote.ended(remote.submit("b.qcow2", "web01", target))
        assert job["status"] == "completed", job
    return dict.fromkeys(GROUPS, "b")


def prepare_bases(remote: Remote, disk: str, other: str, *, base: bool) -> None:
    """Make sure that the pool has the base of ``disk``, or only that of ``other``, which the job then evicts."""
    wanted = disk if base else other
    if remote.base_of(wanted) not in remote.volumes("vgthin"):
        assert remote.ended(remote.submit(f"{wanted}.qcow2", "spare", "thin"))["status"] == "completed"
    if not base and remote.base_of(disk) in remote.volumes("vgthin"):
        remote.guest.sh(f"lvremove -qy vgthin/{remote.base_of(disk)}")
    # The service does not evict a base that a job has just used. It forgets this at a restart.
    if not base and remote.submitted:
        remote.restart()


def end_at(remote: Remote, point: Point) -> None:
    """Wait until the service or the guest ends at the point, and start it again."""
    remote.until(remote.struck)
    if point.end == "kill":
        remote.gone()
    else:
        remote.guest.power_cut()
        remote.guest.boot()
    remote.guest.sh("rm -f /root/armed /root/fired /root/fired-soon")
    remote.start()


def named(point: Point) -> str:
    return f"{point.end}-{point.target}-{point.after}-{point.delay:g}".replace("*", "").replace(" ", "_")


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, id=named(point), marks=() if point in OFTEN else pytest.mark.slow)
        for point in [*KILLS, *CUTS]
    ],
)
def test_the_volume_is_old_or_new(remote: Remote, held: dict[str, str], point: Point) -> None:
    before = held[point.target]
    other = "b" if before == "a" else "a"
    if point.target == "thin":
        prepare_bases(remote, other, before, base=point.base)
    remote.arm(point.after, point.delay, point.end)
    job_id = remote.submit(f"{other}.qcow2", "web01", point.target)
    end_at(remote, point)
    job = remote.job(job_id)
    assert job["status"] in {"completed", "failed"}, job
    held[point.target] = other if job["status"] == "completed" else before
    assert remote.holds(device(point.target, "web01"), held[point.target], tail=16 * 2**20), job
    assert remote.left_over() == set()
    assert remote.volumes("vgplain") == {"web01"}
    assert remote.volumes("vgthin") - {"spare", remote.base_of("a"), remote.base_of("b")} == {"web01"}
    remote.check_bases()
