"""Hostile images on real LVM: each job fails with the reason, and no volume is created or changed."""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.guest.outside.service.remote import GROUPS, device
from tests.hostile.cases import CASES, CLUSTERS, CORNERS, PACKED, REACHING_ELSEWHERE, SIZES
from tests.hostile.forge import Workshop

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guest.outside.service.remote import Remote

MIB = 2**20
# Emulated processors are slow, and most cases are refused before a volume is staged, regardless of the target. So these
# are the cases that get further, and some of the others, each on one of the two targets. LVP_ALL_ROWS=1 runs all cases
# on both. Only the native converter is used.
FURTHER = [*REACHING_ELSEWHERE[:2], *CORNERS[5:], *SIZES[:2], *CLUSTERS, *PACKED[5:6], *PACKED[-8:-6]]
ALL_ROWS = bool(os.environ.get("LVP_ALL_ROWS"))
CASES_HERE = [
    case
    for case in (CASES if ALL_ROWS else FURTHER)
    if case.declared in {"raw", "qcow2"}
    and "native" in case.converters
    and not re.match(r"bomb-(?!as-qcow2)", case.name)
]


@pytest.fixture(scope="module")
def folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The served folder with the hostile images."""
    shop = Workshop(tmp_path_factory.mktemp("workshop"))
    for case in CASES_HERE:
        image = folder / f"{case.name}.{case.declared}"
        image.write_bytes(case.make(shop))
        digest = hashlib.sha256(image.read_bytes()).hexdigest()
        image.with_name(f"{image.name}.sha256").write_text(f"{digest}  {image.name}\n")
    return folder


@pytest.mark.parametrize("target", GROUPS)
def test_hostile_images(remote: Remote, target: str) -> None:
    good = remote.ended(remote.submit("a.qcow2", "web01", target))
    assert good["status"] == "completed", good
    before = remote.volumes(GROUPS[target])
    cases = CASES_HERE if ALL_ROWS else CASES_HERE[list(GROUPS).index(target) :: len(GROUPS)]
    jobs = {case: remote.submit(f"{case.name}.{case.declared}", f"evil-{case.name}", target) for case in cases}
    wrong = {}
    for case, job_id in jobs.items():
        job = remote.ended(job_id)
        if job["status"] != "failed" or not re.search(case.words, job["error"]):
            wrong[case.name] = job.get("error", job["status"])
    assert wrong == {}
    assert remote.volumes(GROUPS[target]) == before
    assert remote.left_over() == set()
    assert remote.holds(device(target, "web01"), "a")
    assert remote.guest.sh(f"ps -o pid= --ppid {remote.pid} || true").split() == []
    most = re.search(r"VmHWM:\s+(\d+) kB", remote.guest.sh(f"cat /proc/{remote.pid}/status"))
    assert most is not None
    assert int(most[1]) * 1024 < 200 * MIB
