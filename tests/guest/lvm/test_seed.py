"""A volume and its cloud-init seed on real LVM: mounted by the kernel, and both new or both old at every rename."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from provisioner.contracts import ImageUrl
from provisioner.contracts.errors import ProvisionerError
from provisioner.pipeline.cloud_init import CloudInit
from provisioner.pipeline.job_run import JobRun, JobSpec, Outcome
from provisioner.pipeline.seed import commit_both, settle
from tests.guest.lvm import harness
from tests.guest.lvm.fault_injection import FAULTS, USUAL_LIMIT, a_tool

if TYPE_CHECKING:
    from pathlib import Path

    from lvp_target_lvm.group import GroupTarget
    from provisioner.contracts import Volume

CREATED = 1_700_000_000.0


@dataclass
class Place:
    """Where the volumes are made; ``target`` returns a target that uses the LVM tools of a folder."""

    group: str
    thin: bool
    folder: Path

    def target(self, tools: str = "") -> GroupTarget:
        more = {"tool_path": tools, "report_timeout": USUAL_LIMIT, "change_timeout": USUAL_LIMIT} if tools else {}
        make = harness.thin_target if self.thin else harness.plain_target
        return make(self.group, **({"clone": False} if self.thin else {}), **more)

    async def run(self, target: GroupTarget, job: str) -> None:
        """Make the volume and its seed, as a job does once its image is there."""
        data = CloudInit(user_data=f"user-data of {job}")
        image = self.folder / f"{job}.iso"
        image.write_bytes(data.image(job, "web01", CREATED))
        url = ImageUrl.parse("https://images.example.com/disk.raw")
        run = JobRun(job, CREATED, JobSpec(image_url=url, volume_name="web01", cloud_init=data.seal()))
        run.seed_image = image

        async def unused(_: str) -> None: ...

        async with target.stage(harness.request(job=job), verified=False) as staged:
            harness.write(staged.device.path, job.encode())

            async def commit_volume(seed: Volume | None) -> None:
                run.outcome = Outcome(None, None, await staged.commit(harness.DIGEST), seed=seed)

            await commit_both(run, target, unused, commit_volume, USUAL_LIMIT)

    def jobs(self) -> tuple[str, str]:
        """Return whose volume and whose seed there is, by their content."""
        volume, seed = (f"/dev/{self.group}/{name}" for name in ("web01", "web01-seed"))
        mount = self.folder / "mnt"
        mount.mkdir(exist_ok=True)
        harness.run("mount", "-t", "iso9660", "-o", "ro", seed, str(mount))
        try:
            text = (mount / "user-data").read_text()
            assert "instance-id: job-" in (mount / "meta-data").read_text()
        finally:
            harness.run("umount", str(mount))
        return harness.content(volume, 5).decode(), text.removeprefix("user-data of ")


@pytest.fixture(params=["plain", "thin"])
def place(request, tmp_path) -> Place:
    return Place(request.getfixturevalue(request.param), request.param == "thin", tmp_path)


async def test_seed_is_found_and_mounted(place):
    """By its label, as a guest finds it; it is replaced and removed like any other volume."""
    target = place.target()
    for job in ("job-1", "job-2"):
        await place.run(target, job)
        assert place.jobs() == (job, job)
    assert harness.run("blkid", "-p", "-o", "value", "-s", "LABEL", f"/dev/{place.group}/web01-seed") == "CIDATA"
    found = await target.find("web01-seed")
    assert found.provenance.seed_of == "web01"
    assert {"web01", "web01-seed"} == {one.name for one in await target.list()}
    assert not any(name.startswith("lvp.") for name in harness.volumes(place.group))
    await target.remove("web01-seed")
    assert await target.find("web01-seed") is None


# The renames of a job that replaces both: the old seed aside, the new one in, the old volume aside, the new one in, and
# the old seed among the kept ones.
@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("fault", ["fails", "does it and is killed"])
async def test_both_new_or_both_old(plain, tmp_path, fault, number):
    """One rename goes wrong, then comes what a restart does."""
    place = Place(plain, thin=False, folder=tmp_path)
    await place.run(place.target(), "job-1")
    tools = tmp_path / "tools"
    tools.mkdir()
    try:
        await place.run(place.target(a_tool(tools, "lvrename", number, FAULTS[fault][0])), "job-2")
    except ProvisionerError:
        await place.target().recover(frozenset())
        await settle(place.target(), "job-2", "web01", latest=True)
    assert (tools / "calls").read_text().split().count("lvrename") >= number
    volume, seed = place.jobs()
    assert volume == seed
    if volume == "job-2":  # a replaced seed whose removal failed stays until its time is up
        for kept in await place.target().kept():
            await place.target().remove_kept(kept.kept_as)
    assert not any(name.startswith("lvp.") for name in harness.volumes(plain))
