"""``--dry-run`` on many hosts: what each job would do, and why it would be refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from provisioner.cli.client import ApiError
from provisioner.cli.connection import path
from provisioner.cli.fleet.calls import each
from provisioner.cli.fleet.failures import Failure, FleetError, failure_of
from provisioner.cli.fleet.hosts import Counter, print_object, print_rows
from provisioner.cli.formatting import size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provisioner.cli.fleet.calls import Call
    from provisioner.cli.fleet.hosts import Fleet
    from provisioner.cli.fleet.submission import Request


def show_plans(fleet: Fleet, requests: Sequence[Request], *, as_json: bool) -> None:
    """Print what each job would do. Raises FleetError if some would be refused, or a host does not answer."""

    def plan(request: Request, _call: Call) -> Mapping[str, Any] | Failure:
        try:
            found = fleet.client(fleet.hosts[request.host]).post(path("plan"), request.body).data
            _cells(found)  # raises here if it is no plan
            _refusals(found)
            return found
        except ApiError as error:
            if error.code in {404, 405}:
                return Failure("refused", "the server is older and has no dry run", error.code)
            return failure_of(error)

    with Counter(len(requests)) as counter:
        results = each(requests, plan, fleet.limits, lambda _number, _result: counter.count())
    rows, failures = [], []
    for request, result in zip(requests, results, strict=True):
        host, name = fleet.hosts[request.host].name, str(request.body.get("volume_name"))
        refusals = [result.message] if isinstance(result, Failure) else _refusals(result)
        if as_json:
            body = result.row() if isinstance(result, Failure) else result
            print_object(host, {"volume_name": name, **body})
        else:
            answered = not isinstance(result, Failure) or result.code is not None
            word = "no answer" if not answered else "refused" if refusals else "ok"
            rows.append([host, name, *_cells({} if isinstance(result, Failure) else result), word])
        if refusals:
            failures.append((f"{host} {name}", "; ".join(refusals)))
    if not as_json:
        print_rows(["HOST", "VOLUME", "TARGET", "SIZE", "BY", "DOWNLOAD", "REPLACES", "RESULT"], rows)
    if failures:
        raise FleetError(failures, len(requests), "plans")


def _refusals(plan: Mapping[str, Any]) -> list[str]:
    return [str(refusal["message"]) for refusal in plan["refusals"]]


def _cells(plan: Mapping[str, Any]) -> list[object]:
    download = "nothing" if plan.get("cache_hit") else size(plan["download_bytes"]) if "download_bytes" in plan else ""
    room = size(plan["volume_size_bytes"]) if "volume_size_bytes" in plan else ""
    old = plan.get("replaces")
    replaces = "" if old is None else size(old["size_bytes"]) + ("" if old["ours"] else ", NOT made by the service")
    return [plan.get("target"), room, plan.get("provisioned_by"), download, replaces]
