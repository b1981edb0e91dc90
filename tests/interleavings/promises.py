"""What must hold after any order of the operations. Each function raises AssertionError with the promise broken."""

from __future__ import annotations

from provisioner.jobs import Status
from tests.cancellation.harness import IMAGE


def check_now(host, told) -> None:
    """Once every operation has ended and no job is active; ``told``: the jobs in the store, by id."""
    accepted = {done.result.job_id: done for done in host.of("submit")}
    draining = host.supervisor.draining
    for job_id in accepted:
        assert job_id in told, "a job was accepted, and the store does not know it"
        assert told[job_id].status.ended or draining, f"an accepted job is {told[job_id].status}, with nothing active"
    for done in host.of("cancel"):
        assert told[done.result.job_id].status is Status.CANCELLED, "a job was told to be cancelled and is not"
    unexplained = told.keys() - accepted.keys() - host.known
    assert not unexplained or any(done.kind == "hang_up" for done in host.done), "a job that no client was told of"
    assert all(told[job_id].status.ended or draining for job_id in unexplained), "a job is stored, and nothing runs it"
    _check_volume(host, told)
    _check_overlaps(host, told, accepted)
    for done in host.of("evict"):
        on_disk = {path.name for path in (host.folder / "cache").iterdir()}
        entries = {entry.file_name for entry in host.cache.entries()}
        assert (done.result.file_name in on_disk) == (done.result.file_name in entries), "an evicted file stayed"


def _check_volume(host, told) -> None:
    """The volume holds what the ends that were told explain."""
    held, new = (
        host.volume(),
        [job for job in told.values() if job.job_id not in host.known or job.job_id in host.job_ends],
    )
    completed = any(job.status is Status.COMPLETED for job in new)
    removed = bool(host.of("remove_volume"))
    allowed = [IMAGE] if completed else [host.old]
    if removed:
        allowed = [None, IMAGE] if completed else [None]
    assert held in allowed, f"the volume holds {held and held[:20]!r}; {completed=}, {removed=}"


def _check_overlaps(host, told, accepted) -> None:
    """A removal that succeeded and a job that completed never worked on the volume at the same time."""
    for removal in host.of("remove_volume"):
        for job_id, submit in accepted.items():
            if told[job_id].status is Status.COMPLETED:
                ended = host.job_ends[job_id]
                apart = ended <= removal.begin or removal.end <= submit.begin
                assert apart, "a volume was removed while a job for it was accepted"


def check_restart(host, told, again) -> None:
    """After a restart: every job is known, an end never changed, and nothing ran again that had ended."""
    for job_id, job in told.items():
        assert job_id in again, "a job is unknown after the restart"
        if job.status.ended:
            assert again[job_id].status is job.status, f"a {job.status} job is {again[job_id].status} after the restart"
        else:
            assert again[job_id].status.ended, "an accepted job never ended"
    if all(job.status.ended for job in told.values()):
        assert host.volume() == host.before_restart, "the restart changed the volume"
