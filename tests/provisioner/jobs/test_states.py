"""The states of a job: every event in every status, and the status at the end."""

import msgspec
import pytest

from provisioner.contracts import GIB, Checksum, ImageUrl, ProvisionedBy, Volume
from provisioner.contracts.errors import ConvertError, RollbackError
from provisioner.jobs.job import Job, after_restart, conclude, describe
from provisioner.jobs.record import same_request
from provisioner.jobs.states import Event, ImpossibleTransitionError, Status, after
from provisioner.pipeline.cloud_init import CloudInit
from provisioner.pipeline.job_run import JobSpec, Outcome

P, R = Status.PENDING, Status.RUNNING
ALLOWED = {
    (P, Event.START): R,
    (P, Event.CANCEL): Status.CANCELLED,
    (P, Event.FAIL): Status.FAILED,
    (R, Event.COMPLETE): Status.COMPLETED,
    (R, Event.FAIL): Status.FAILED,
    (R, Event.CANCEL): Status.CANCELLED,
    (R, Event.INTERRUPT): P,
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("status", Status)
def test_every_event_in_every_status(status, event):
    if (status, event) in ALLOWED:
        assert after(status, event) is ALLOWED[status, event]
    else:
        with pytest.raises(ImpossibleTransitionError, match=f"{event} cannot happen to a {status} job"):
            after(status, event)


def test_ended_status_is_final():
    assert {status for status in Status if status.ended} == {Status.COMPLETED, Status.FAILED, Status.CANCELLED}
    assert not any(after_ in ALLOWED for after_ in ALLOWED if after_[0].ended)


def a_job(status=R, attempts=1):
    spec = JobSpec(image_url=ImageUrl.parse("https://x/y"), volume_name="web01", size_bytes=GIB, target="main")
    return Job(job_id="j", spec=spec, status=status, created_at=1.0, updated_at=2.0, attempts=attempts)


OUTCOME = Outcome(True, "/cache/x", Volume("web01", "main", "/dev/x", 5), ProvisionedBy.CLONE)


@pytest.mark.parametrize(
    ("outcome", "error", "cancelled", "interrupted", "status", "words"),
    [
        (OUTCOME, None, False, False, Status.COMPLETED, None),
        (OUTCOME, None, True, True, Status.COMPLETED, None),
        (OUTCOME, RollbackError("late"), True, False, Status.COMPLETED, None),
        (None, RollbackError("stuck"), False, False, Status.FAILED, "stuck; it is retried at the next start"),
        (None, RollbackError("stuck"), True, True, Status.FAILED, "stuck; it is retried at the next start"),
        (None, None, True, False, Status.CANCELLED, None),
        (None, ConvertError("x"), True, True, Status.CANCELLED, None),
        (None, None, False, True, P, None),
        (None, ConvertError("x"), False, True, P, None),
        (None, ConvertError("broke"), False, False, Status.FAILED, "broke; the staged volume was removed"),
        (None, ZeroDivisionError("secret"), False, False, Status.FAILED, "internal error (ZeroDivisionError)"),
    ],
)  # fmt: skip
def test_conclude_by_outcome_and_error(outcome, error, cancelled, interrupted, status, words):
    """A made volume counts first, then a failed rollback, then a cancel, then an interruption."""
    ended = conclude(
        a_job(), outcome, error, cancel_requested=cancelled, interrupted=interrupted, staged=True, timings={}, now=9.0
    )
    assert ended.status is status
    assert ended.updated_at == 9.0
    assert (ended.error is None) if words is None else ended.error.startswith(words)
    assert (ended.volume is not None) == (outcome is not None)


def test_describe_names_rollback_if_staged():
    assert describe(ConvertError("broke"), staged=False) == "broke"
    assert "secret" not in describe(ValueError("secret"), staged=False)


@pytest.mark.parametrize(
    ("status", "on_restart", "attempts", "becomes", "words"),
    [
        (P, "retry", 9, P, None),
        (P, "fail", 0, P, None),
        (R, "retry", 1, P, None),
        (R, "retry", 2, P, None),
        (R, "retry", 3, Status.FAILED, "for the 3. time"),
        (R, "fail", 1, Status.FAILED, "the service ended while the job ran; what"),
        (Status.COMPLETED, "fail", 1, Status.COMPLETED, None),
    ],
)
def test_after_restart_by_status_and_policy(status, on_restart, attempts, becomes, words):
    job = after_restart(a_job(status, attempts), None, on_restart, 3, 9.0)
    assert job.status is becomes
    assert words is None or words in job.error


def test_after_restart_with_a_committed_volume():
    volume = Volume("web01", "main", "/dev/vg/web01", 2**30)
    job = after_restart(a_job(R, 3), Outcome(None, None, volume, ProvisionedBy.CLONE), "fail", 3, 9.0)
    assert (job.status, job.error, job.volume.name) == (Status.COMPLETED, None, "web01")


def test_same_request_compares_every_field():
    spec = a_job().spec
    assert same_request(spec, msgspec.structs.replace(spec, allowed_sources=("x",)), None)
    others = {
        "size_bytes": 2 * GIB,
        "priority": 1,
        "checksum": Checksum("sha256", "0" * 64),
        "correlation_id": "c",
        "image_url": ImageUrl.parse("https://x/y?z"),
        "target": "t",
    }
    for key, value in others.items():
        assert not same_request(spec, msgspec.structs.replace(spec, **{key: value}), None), key


def test_same_request_compares_cloud_init_data():
    """Each seal has a salt of its own; only the data decides."""
    data, other = CloudInit(user_data="#cloud-config"), CloudInit(user_data="#cloud-config", meta_data="x")
    plain = a_job().spec
    spec, again = (msgspec.structs.replace(plain, cloud_init=data.seal()) for _ in range(2))
    assert spec.cloud_init != again.cloud_init
    assert same_request(spec, again, data)
    assert not same_request(spec, msgspec.structs.replace(plain, cloud_init=other.seal()), other)
    assert not same_request(plain, spec, data)
    assert not same_request(spec, plain, None)
