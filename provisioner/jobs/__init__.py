"""Jobs: what was accepted, what runs, what became of it."""

from provisioner.jobs.job import Job
from provisioner.jobs.states import Status
from provisioner.jobs.store import JobFilter, JobStore
from provisioner.jobs.supervisor import Supervisor
from provisioner.pipeline.job_run import JobSpec

__all__ = ["Job", "JobFilter", "JobSpec", "JobStore", "Status", "Supervisor"]
