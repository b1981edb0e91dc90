"""The service killed, and its machine's plug pulled, in the middle of replacing a volume: it is old or new."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.guest.outside.service.remote import GROUPS, device

if TYPE_CHECKING:
    from tests.guest.outside.service.remote import Remote

# Spread over the job: the seconds a whole one took, times these.
KILLS = 6
CUTS = 2


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
