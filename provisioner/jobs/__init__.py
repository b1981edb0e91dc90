"""Jobs: the queue, the workers, the store and the history."""

from provisioner.jobs.job import Job
from provisioner.jobs.states import Status
from provisioner.jobs.store import JobFilter, JobStore
from provisioner.jobs.supervisor import Supervisor
from provisioner.pipeline.job_run import JobSpec

__all__ = ["Job", "JobFilter", "JobSpec", "JobStore", "Status", "Supervisor"]
