"""Every ``reason`` that the API gives for an error or a failed job; docs/troubleshooting.md has an entry for each."""

from __future__ import annotations

import inspect
from typing import Final

from provisioner.contracts import errors
from provisioner.contracts.errors import ProvisionerError

# Responses and ends of jobs that no class of error stands for.
HTTPS_REQUIRED: Final = "https-required"
JOB_OVERTAKEN: Final = "job-overtaken"
METHOD_NOT_ALLOWED: Final = "method-not-allowed"
NOT_READY: Final = "not-ready"
SERVICE_ENDED: Final = "service-ended"

REASONS: Final = frozenset({HTTPS_REQUIRED, JOB_OVERTAKEN, METHOD_NOT_ALLOWED, NOT_READY, SERVICE_ENDED}) | {
    kind.reason for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ProvisionerError)
}
