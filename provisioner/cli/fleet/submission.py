"""Submits jobs to many hosts: each host gets its requests one after the other, in the order of the batch.

The keys of a batch come from its requests, so a second run finds the jobs of the first.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from provisioner.cli.client import ApiError
from provisioner.cli.connection import path
from provisioner.cli.exit_status import CliError
from provisioner.cli.fleet.calls import each
from provisioner.cli.fleet.failures import Failure, failure_of
from provisioner.cli.fleet.hosts import Counter
from provisioner.cli.transport import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provisioner.cli.client import Client
    from provisioner.cli.fleet.calls import Call
    from provisioner.cli.fleet.hosts import Fleet

# How often an entry of a batch may have failed before; each is asked for.
_MOST_ATTEMPTS = 100
_KEY_USED = re.compile(r"the Idempotency-Key was used for another request, job ([0-9a-f-]{36})")
_NOT_SENT = Failure("unreachable", "not sent")
_MAYBE = "; the job may have been accepted"
# What a run found or did.
SUBMITTED, ACTIVE, DONE, OLDER_IMAGE = "submitted", "active already", "completed before", "made from an older image"


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one host, which ``host`` numbers. ``again``: submit it anew if its earlier job did not complete."""

    host: int
    where: str
    body: Mapping[str, Any]
    key: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that the host has: ``result`` says whether this run submitted it. ``after``: the job that it repeats."""

    job_id: str
    result: str
    after: str = ""


def batch_key(body: Mapping[str, Any], name: str | None) -> str:
    """Return the idempotency key of a batch's request; another ``name`` makes another run of the same requests."""
    text = json.dumps([name, body], sort_keys=True, separators=(",", ":"))
    return f"lvp-batch-{hashlib.sha256(text.encode()).hexdigest()}"


def submit_all(fleet: Fleet, requests: Sequence[Request]) -> list[Submission | Failure]:
    """Submit the requests; return what became of each, in their order."""
    results: list[Submission | Failure] = [_NOT_SENT] * len(requests)
    by_host: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        by_host.setdefault(request.host, []).append(number)

    def submit_host(host: int, call: Call) -> None:
        client = fleet.client(fleet.hosts[host])
        for number in by_host[host]:
            try:
                results[number] = submit_one(client, requests[number], call)
            except (ApiError, UnreachableError) as error:
                results[number] = _failure(error)
                if isinstance(error, UnreachableError) or error.code == 401:
                    return

    with Counter(len(by_host)) as counter:
        ends = each(list(by_host), submit_host, fleet.limits, lambda _number, _result: counter.count())
    found = list(results)  # a thread that was given up may still write into the other
    for numbers, end in zip(by_host.values(), ends, strict=True):
        missing = [number for number in numbers if found[number] is _NOT_SENT]
        if isinstance(end, Failure) and missing:  # given up within this request
            found[missing.pop(0)] = replace(end, message=end.message + (_MAYBE if end.lost else ""))
        for number in missing:
            found[number] = Failure("unreachable", "not sent, because the request before it failed")
    return found


def _failure(error: ApiError | UnreachableError) -> Failure:
    failure = failure_of(error)
    return replace(failure, message=failure.message + _MAYBE) if failure.lost else failure


def submit_one(client: Client, request: Request, call: Call) -> Submission:
    """Submit a request; find the job of an earlier run. Raises ApiError, UnreachableError, OverrunError."""
    key, after = request.key, ""
    for _ in range(_MOST_ATTEMPTS):
        call.beat()
        try:
            answer = client.submit(request.where, request.body, key)
        except ApiError as error:
            used = _KEY_USED.search(error.message) if request.again and error.code == 409 else None
            if used is None:
                raise
            # The body is the same, but the name of its image stands for a newer one now.
            earlier, changed = used[1], True
        else:
            earlier, changed = str(answer.data["job_id"]), False
            if not answer.data.get("repeated"):
                return Submission(earlier, SUBMITTED, after)
        call.beat()
        status = client.get(path("jobs", earlier)).data.get("status")
        if status in {"failed", "cancelled"} and request.again:
            after = f"{earlier} {status}"
            key = f"{request.key}-{earlier}"
            continue
        if status == "completed":
            return Submission(earlier, OLDER_IMAGE if changed else DONE, after)
        return Submission(earlier, ACTIVE, after)
    raise CliError(f"{_MOST_ATTEMPTS} jobs for it have failed; use another --idempotency-key to try again")
