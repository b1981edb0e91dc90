"""The main job on real LVM, asked for over TLS from another machine, and the service killed in the middle of it."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.guest.outside.service.remote import Remote

GROUPS = {"plain": "vgplain", "thin": "vgthin"}
# Spread over the job: the seconds a whole one took, times these.
KILLS = 6
CUTS = 2


def device(target: str, name: str) -> str:
    return f"/dev/{GROUPS[target]}/{name}"


@pytest.mark.parametrize("image", ["a.qcow2", "b.raw"])
@pytest.mark.parametrize("target", ["plain", "thin"])
def test_a_volume_is_the_image_and_zeros(remote: Remote, target: str, image: str) -> None:
    job = remote.ended(remote.submit(image, "web01", target))  # the second image replaces the first
    assert job["status"] == "completed", job
    assert job["volume"]["path"] == device(target, "web01")
    assert job["volume"]["provisioned_by"] == ("clone" if target == "thin" else "copy")
    assert remote.holds(device(target, "web01"), image[0])
    assert remote.left_over() == set()


def test_the_same_image_again_is_a_clone_and_nothing_is_fetched(remote: Remote) -> None:
    first = remote.ended(remote.submit("a.qcow2", "again01", "thin"))
    second = remote.ended(remote.submit("a.qcow2", "again02", "thin"))
    assert {job["volume"]["provisioned_by"] for job in (first, second)} == {"clone"}
    assert second["cache_hit"]
    assert remote.holds(device("thin", "again02"), "a")


def test_only_what_it_made_is_listed_and_removed(remote: Remote) -> None:
    remote.guest.sh("lvcreate -qy -L 64M -n foreign vgplain")
    listed = {(volume["target"], volume["name"]) for volume in remote.call("GET", "/api/v1/volumes").json()["volumes"]}
    assert ("plain", "web01") in listed
    assert ("plain", "foreign") not in listed
    assert remote.call("DELETE", "/api/v1/volumes/plain/foreign").status_code == 404
    assert remote.call("DELETE", "/api/v1/volumes/thin/again02").status_code == 200
    assert "foreign" in remote.volumes("vgplain")
    assert "again02" not in remote.volumes("vgthin")
    remote.guest.sh("lvremove -qy vgplain/foreign")


def test_an_open_volume_is_not_touched(remote: Remote) -> None:
    holder = remote.guest.start(["sh", "-c", f"exec sleep 100000 < {device('plain', 'web01')}"], "/dev/null")
    job = remote.ended(remote.submit("a.raw", "web01", "plain"))
    assert job["status"] == "failed"
    assert "in use" in job["error"] or "open" in job["error"]
    assert remote.call("DELETE", "/api/v1/volumes/plain/web01").status_code == 409
    assert remote.holds(device("plain", "web01"), "b")
    remote.guest.sh(f"kill {holder}; while kill -0 {holder} 2>/dev/null; do sleep 0.1; done")


def one_ended_early(remote: Remote, target: str, before: str, delay: float, end: str) -> str:
    """Replace the volume's disk by the other one, end service or machine after ``delay``; the disk it then holds."""
    other = "b" if before == "a" else "a"
    job_id = remote.submit(f"{other}.qcow2", "web01", target)
    time.sleep(delay)
    if end == "kill":
        remote.kill()
    else:
        remote.guest.power_cut()
        remote.guest.boot()
    remote.start()
    job = remote.job(job_id)
    assert job["status"] in {"completed", "failed"}, job
    held = other if job["status"] == "completed" else before
    assert remote.holds(device(target, "web01"), held, tail=16 * 2**20), (job, delay)
    assert remote.left_over() == set()
    return held


@pytest.mark.parametrize(("end", "times"), [("kill", KILLS), ("power cut", CUTS)])
def test_the_volume_is_old_or_new_whenever_it_ends(remote: Remote, end: str, times: int) -> None:
    whole = {}
    for target in GROUPS:
        for image in ("a", "b"):  # the pool learns both images, so that its jobs are clones from here on
            begun = time.monotonic()
            job = remote.ended(remote.submit(f"{image}.qcow2", "web01", target))
            assert job["status"] == "completed", job
            whole[target] = time.monotonic() - begun
    chance, held, seen = random.Random(end), dict.fromkeys(GROUPS, "b"), []
    for number in range(times):
        target = ("plain", "thin")[number % 2]
        delay = whole[target] * chance.random()
        before = held[target]
        held[target] = one_ended_early(remote, target, before, delay, end)
        seen.append((target, held[target] != before))
    # Names on the host are those of whole volumes and of the pool's bases, and no others.
    assert "web01" in remote.volumes("vgplain")
    assert all(name == "web01" for name in remote.volumes("vgplain"))
    print(f"{end}: {sum(new for _, new in seen)} of {times} had committed")
