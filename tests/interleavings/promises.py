"""What must hold after any order of the operations. Each function raises AssertionError naming the broken promise."""

from __future__ import annotations

from provisioner.contracts import KeepingTarget, Owner
from provisioner.jobs import Status
from tests.cancellation.harness import IMAGE


def check_now(host, stored) -> None:
    """Check after every operation has ended and no job is active; ``stored``: the jobs in the store, by id."""
    accepted = {done.result.job_id: done for done in (*host.of("submit"), *host.of("submit_seeded"))}
    draining = host.supervisor.draining
    for job_id in accepted:
        assert job_id in stored, "an accepted job is missing from the store"
        assert stored[job_id].status.ended or draining, (
            f"an accepted job is {stored[job_id].status}, with nothing active"
        )
    for done in host.of("cancel"):
        assert stored[done.result.job_id].status is Status.CANCELLED, (
            "a cancel was confirmed but the job is not cancelled"
        )
    unexplained = stored.keys() - accepted.keys() - host.known
    assert not unexplained or any(done.kind == "hang_up" for done in host.done), "a job that no client submitted"
    assert all(stored[job_id].status.ended or draining for job_id in unexplained), (
        "a job is stored, but nothing runs it"
    )
    _check_volume(host, stored)
    _check_kept(host)
    _check_overlaps(host, stored, accepted)
    for done in host.of("evict"):
        on_disk = {path.name for path in (host.folder / "cache").iterdir()}
        entries = {entry.file_name for entry in host.cache.entries()}
        assert (done.result.file_name in on_disk) == (done.result.file_name in entries), "an evicted file stayed"


def _check_volume(host, stored) -> None:
    """Check that the stored ends of jobs explain the volume's content."""
    held, new = (
        host.volume(),
        [job for job in stored.values() if job.job_id not in host.known or job.job_id in host.job_ends],
    )
    completed = any(job.status is Status.COMPLETED for job in new)
    removed = bool(host.of("remove_volume"))
    allowed = [IMAGE] if completed else [host.old]
    if removed:
        allowed = [None, IMAGE] if completed else [None]
    if host.of("restore"):
        allowed = [*allowed, *host.kept_before]
    assert held in allowed, f"the volume holds {held and held[:20]!r}; {completed=}, {removed=}"


def check_seed(host, stored) -> None:
    """Check that a cloud-init seed stands beside the volume of its job, and that no data of ended jobs is left."""
    volume, seed = (host.target._volume(name) for name in ("web01", "web01-seed"))
    if seed is not None:
        assert volume is not None, "a cloud-init seed stands alone"
        assert volume.provenance.job_id == seed.provenance.job_id, "the cloud-init seed is another job's"
    if volume is not None and volume.provenance is not None:
        job = stored.get(volume.provenance.job_id)
        assert (job is not None and job.spec.cloud_init is not None) == (seed is not None), "a seed is missing"
    left = {path.stem for path in (host.folder / "cloud-init").glob("*")}
    assert left <= {job_id for job_id, job in stored.items() if not job.status.ended}, "cloud-init data is left"


def _check_kept(host) -> None:
    """Check that a foreign volume is never lost: it has its name or is kept, unless an operation may remove it."""
    foreign = [content for content in [host.old, *host.kept_before] if content not in {None, IMAGE}]
    left = [content for content in [host.volume(), *host.kept()] if content not in {None, IMAGE}]
    removed = [done.result for done in host.of("remove_kept")]
    may_go = any(done.kind in {"expire", "remove_volume", "adopt"} for done in host.done)
    may_go = may_go or any(kept.owner is Owner.FOREIGN for kept in removed)
    restored = {done.result[0] for done in host.of("restore")}
    assert not restored & {kept.kept_as for kept in removed}, "a kept volume was both restored and removed"
    if isinstance(host.target, KeepingTarget) and not may_go:
        assert left == foreign, f"a foreign volume was lost: {len(foreign)} before, {len(left)} now"
    assert len(left) <= len(foreign), "a volume has its name and is kept, too"


def _check_overlaps(host, stored, accepted) -> None:
    """Check that a successful removal and a completed job never worked on the volume at the same time."""
    for removal in host.of("remove_volume"):
        for job_id, submit in accepted.items():
            if stored[job_id].status is Status.COMPLETED:
                ended = host.job_ends[job_id]
                apart = ended <= removal.begin or removal.end <= submit.begin
                assert apart, "a volume was removed while a job for it was accepted"


def check_restart(host, stored, again) -> None:
    """Check after a restart that every job is known and that ended jobs neither changed nor ran again."""
    for job_id, job in stored.items():
        assert job_id in again, "a job is unknown after the restart"
        if job.status.ended:
            assert again[job_id].status is job.status, f"a {job.status} job is {again[job_id].status} after the restart"
        else:
            assert again[job_id].status.ended, "an accepted job never ended"
    if all(job.status.ended for job in stored.values()):
        assert host.volume() == host.before_restart, "the restart changed the volume"
