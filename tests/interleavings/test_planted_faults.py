"""Ordering faults the code once had, or nearly had, are planted again and must be found."""

from contextlib import contextmanager, suppress

import pytest

from provisioner.cache.files import CacheFiles
from provisioner.contracts.errors import ConflictError
from provisioner.jobs import JobStore
from provisioner.jobs.ended_jobs import EndedJobs
from provisioner.jobs.reservations import Reservation, Reservations
from tests.interleavings import operations as op
from tests.interleavings.host import scenario
from tests.interleavings.schedule import explore

pytestmark = pytest.mark.slow  # like the pairs


async def lose_the_job(_store, _job):
    """The deadline's expiry is swallowed: nothing is stored, and the caller continues."""


async def store_without_shield(store, job):
    """A client that hangs up leaves a stored job that never runs."""
    await store.put(job)


async def report_before_storing(ends, active, job):
    """The end is reported before it is stored."""
    ends._kept.pop(job.job_id, None)
    ends._on_stored(active, job)
    return True


@contextmanager
def look_without_holding(names, target, volume_name, holder):
    """A removal checks the name but does not reserve it."""
    held = names._held.get((target, volume_name))
    if held is not None:
        raise ConflictError(held.holder())
    yield


def take_what_is_taken(names, target, volume_name, holder):
    """Two jobs for one volume."""
    made = names._held[target, volume_name] = Reservation(names, target, volume_name, holder)
    return made


def keep_the_file(_files, entries):
    """The cache reports the file as removed, but it stays."""
    return list(entries), None


FAULTS = {
    "a lost 202": (JobStore, "add", lose_the_job, (op.submit, op.submit), None),
    "an orphan after a hang-up": (JobStore, "add", store_without_shield, (op.hang_up, op.submit), None),
    "an end that is not stored": (EndedJobs, "_try", report_before_storing, (op.submit, op.cancel), None),
    "a removal beside a job": (
        Reservations, "holding", look_without_holding, (op.submit, op.remove_volume), op.a_volume
    ),
    "two jobs for a volume": (Reservations, "reserve", take_what_is_taken, (op.submit, op.remove_volume), op.a_volume),
    "an evicted file stays": (CacheFiles, "remove", keep_the_file, (op.evict, op.pin), op.a_volume),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(monkeypatch, fault):
    owner, name, planted, operations, before = FAULTS[fault]
    monkeypatch.setattr(owner, name, planted)
    found = None
    with suppress(BaseExceptionGroup):
        try:
            explore(scenario(*operations, before=before), random_runs=60)
        except Exception as error:
            found = error
    assert found is not None, "the walk did not find it"
    assert "schedule (" in "".join(found.__notes__)
