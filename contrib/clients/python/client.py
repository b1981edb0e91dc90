"""Uses the client that openapi-python-client generates: every value that the service answers is checked."""

from __future__ import annotations

import os
import ssl
import time
import uuid

from lvp_client import AuthenticatedClient, Client
from lvp_client.api.cache import list_cached_images
from lvp_client.api.host import list_targets, whoami
from lvp_client.api.jobs import cancel_job, get_job, list_jobs, plan_job, submit_job
from lvp_client.api.volumes import list_volumes
from lvp_client.models import ErrorResponse, Job, JobRequest, JobStatus, ProvisionedBy
from lvp_client.types import Unset

SIZE_GB = 3
SIZE = SIZE_GB * 2**30
ENDED = {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}


def connect() -> Client | AuthenticatedClient:
    """Return a client with a token, or else with a certificate."""
    tls = ssl.create_default_context(cafile=os.environ["LVP_CA"])
    settings = {"base_url": os.environ["LVP_URL"], "verify_ssl": tls, "httpx_args": {"trust_env": False}}
    if token := os.environ.get("LVP_TOKEN"):
        return AuthenticatedClient(token=token, prefix="", auth_header_name="X-API-Token", **settings)
    tls.load_cert_chain(os.environ["LVP_CERTIFICATE"], os.environ["LVP_KEY"])
    return Client(**settings)


def wait(client: Client, job_id: uuid.UUID, wanted: set[JobStatus]) -> Job:
    for _ in range(6000):
        job = get_job.sync(job_id, client=client)
        assert isinstance(job, Job), job
        if job.status in wanted:
            return job
        time.sleep(0.01)
    raise AssertionError(f"job {job_id} is still {job.status}")


def provision(client: Client, volume: str) -> uuid.UUID:
    """Submit a job for a volume of 3 GiB, and find it in every list."""
    url, checksum = os.environ["LVP_IMAGE_URL"], os.environ["LVP_CHECKSUM"]
    request = JobRequest(volume_name=volume, image_url=url, volume_size_gb=SIZE_GB, correlation_id=f"for-{volume}")
    plan = plan_job.sync(client=client, body=request)
    assert (plan.volume_size_bytes, plan.refusals, plan.checksum) == (SIZE, [], f"sha256:{checksum}")

    job = wait(client, submit_job.sync(client=client, body=request).job_id, ENDED)
    assert job.status is JobStatus.COMPLETED, job.error
    assert (job.volume.name, job.volume.size_bytes, job.volume.provisioned_by) == (volume, SIZE, ProvisionedBy.COPY)
    assert (job.progress.percent, job.progress.bytes_total) == (100, SIZE)
    assert (job.request.volume_size_gb, job.request.image_type, job.request.priority) == (SIZE_GB, "qcow2", 0)
    assert job.created_at <= job.updated_at
    assert isinstance(job.waiting_for, Unset)
    assert job.submitted_by == os.environ["LVP_PRINCIPAL"]

    jobs = list_jobs.sync(client=client, status=JobStatus.COMPLETED, volume_name=volume, limit=5)
    assert (jobs.count, jobs.offset, jobs.limit, [one.job_id for one in jobs.jobs]) == (1, 0, 5, [job.job_id])
    (found,) = [one for one in list_volumes.sync(client=client).volumes if one.name == volume]
    assert (found.size_bytes, found.checksum, found.job_id) == (SIZE, checksum, str(job.job_id))
    (image,) = [one for one in list_cached_images.sync(client=client).images if one.checksum == checksum]
    assert (image.virtual_size, image.digest) == (SIZE, f"sha256:{checksum}")
    return job.job_id


def cancel(client: Client, volume: str) -> None:
    request = JobRequest(volume_name=volume, image_url=os.environ["LVP_HELD_URL"], image_type="raw", priority=-7)
    job_id = submit_job.sync(client=client, body=request).job_id
    job = wait(client, job_id, {JobStatus.RUNNING})
    assert job.request.priority == -7
    assert cancel_job.sync(job_id, client=client).job_id == job_id
    assert wait(client, job_id, ENDED).status is JobStatus.CANCELLED


def fail(client: Client, ended: uuid.UUID) -> None:
    """Provoke errors that have a type."""
    unknown = get_job.sync_detailed(uuid.uuid4(), client=client)
    late = cancel_job.sync_detailed(ended, client=client)
    foreign = JobRequest(volume_name="x", image_url="https://elsewhere.example/disk.qcow2")
    refused = submit_job.sync_detailed(client=client, body=foreign)
    for response, status, category in ((unknown, 404, "job not found"), (late, 400, ""), (refused, 400, "")):
        error = response.parsed
        assert isinstance(error, ErrorResponse), response
        assert (response.status_code, error.code) == (status, status)
        assert error.message
        assert error.error == (category or error.error)
        assert response.headers["X-Request-ID"]


def main() -> None:
    volume = os.environ["LVP_VOLUME"]
    with connect() as client:
        caller = whoami.sync(client=client)
        assert (caller.principal, caller.role) == (os.environ["LVP_PRINCIPAL"], "operator")
        assert list_targets.sync(client=client).targets[0].size_bytes > SIZE
        job_id = provision(client, volume)
        cancel(client, f"{volume}-cancelled")
        fail(client, job_id)


main()
