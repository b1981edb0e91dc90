"""The routes under ``/api/v1``: parse the request, call the responsible part and render the response."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog
import trio
from quart import Blueprint, Response, g, request

from provisioner.api import requests, responses, submission
from provisioner.api.back_end_listing import BackEndListing
from provisioner.api.event_stream import add_events
from provisioner.api.kept_volumes import add_kept_volumes
from provisioner.api.page import ENDPOINTS as PAGE_ROUTES
from provisioner.api.uploads import add_uploads
from provisioner.api.volume_listing import Listing
from provisioner.auth import authorization
from provisioner.contracts import GIB, Checksum
from provisioner.contracts.errors import UnsupportedMediaTypeError

if TYPE_CHECKING:
    from provisioner.api.services import Services
    from provisioner.config import Role
    from provisioner.contracts import Volume
    from provisioner.jobs import Job

S = TypeVar("S", bound=msgspec.Struct)

# Jobs rendered before the event loop gets control again: less than a millisecond.
_RENDERED_AT_ONCE = 100

# The least role for each route. A route that is neither here nor in OPEN_ROUTES is forbidden to every caller.
ROLES: dict[str, Role] = {
    "v1.submit_job": "operator",
    "v1.plan_job": "operator",
    "v1.list_jobs": "viewer",
    "v1.get_job": "viewer",
    "v1.cancel_job": "operator",
    "v1.retry_job": "operator",
    "v1.watch_job": "viewer",
    "v1.watch_events": "viewer",
    "v1.list_images": "viewer",
    "v1.upload_image": "operator",
    "v1.get_upload": "operator",
    "v1.remove_image": "admin",
    "v1.pin_image": "operator",
    "v1.unpin_image": "operator",
    "v1.verify_image": "operator",
    "v1.fetch_image": "operator",
    "v1.prune_cache": "admin",
    "v1.list_named_images": "viewer",
    "v1.get_named_image": "viewer",
    "v1.list_volumes": "viewer",
    "v1.remove_volume": "admin",
    "v1.resize_volume": "operator",
    "v1.list_replaced_volumes": "viewer",
    "v1.restore_volume": "admin",
    "v1.remove_replaced_volume": "admin",
    "v1.adopt_volume": "admin",
    "v1.list_targets": "viewer",
    "v1.list_sources": "viewer",
    "v1.whoami": "viewer",
}
# The query parameters of each route; a route that is not listed has none.
QUERIES: dict[str, type[msgspec.Struct]] = {
    "v1.submit_job": requests.SubmitQuery,
    "v1.list_jobs": requests.JobPage,
    "v1.list_images": requests.ImagePage,
    "v1.upload_image": requests.UploadQuery,
    "v1.get_upload": requests.UploadStateQuery,
    "v1.list_volumes": requests.Page,
    "v1.list_replaced_volumes": requests.Page,
    "v1.remove_replaced_volume": requests.KeptQuery,
}
# The routes that need no credential; the configuration can close /metrics. The page's files hold no data.
OPEN_ROUTES = PAGE_ROUTES | {
    "service.health",
    "service.healthz",
    "service.livez",
    "service.readyz",
    "service.metrics",
}


def answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(msgspec.json.encode(body), status, headers, content_type="application/json")


def make_blueprint(services: Services) -> Blueprint:
    """Return the blueprint of all ``/api/v1`` routes."""
    api = Blueprint("v1", __name__, url_prefix="/api/v1")
    _add_jobs(api, services)
    add_events(api, services)
    _add_cache(api, services)
    add_uploads(api, services, answer)
    _add_named_images(api, services)
    _add_volumes(api, services)
    _add_host(api, services)
    return api


def _add_jobs(api: Blueprint, services: Services) -> None:
    async def planned(body: requests.JobRequest) -> Response:
        return answer(responses.plan_body(*await submission.dry_run(services, body)))

    @api.post("/jobs", provide_automatic_options=False)
    async def submit_job() -> Response:
        query = requests.read_query(request.args, requests.SubmitQuery)
        body = await _body(requests.JobRequest)
        if query.dry_run == "true":
            return await planned(body)
        return _accepted(await submission.submit(services, body))

    @api.post("/plan", provide_automatic_options=False)
    async def plan_job() -> Response:
        return await planned(await _body(requests.JobRequest))

    @api.get("/jobs", provide_automatic_options=False)
    async def list_jobs() -> Response:
        page = requests.read_query(request.args, requests.JobPage)
        jobs, count = await services.store.page(page.wanted(), page.offset, page.limit)
        snapshot, bodies = services.supervisor.snapshot, []
        for start in range(0, len(jobs), _RENDERED_AT_ONCE):
            some = jobs[start : start + _RENDERED_AT_ONCE]
            bodies += [responses.job_body(job, snapshot(job.job_id), g.principal.id) for job in some]
            await trio.lowlevel.checkpoint()
        return answer({"jobs": bodies, "count": count, "offset": page.offset, "limit": page.limit})

    @api.get("/jobs/<job_id>", provide_automatic_options=False)
    async def get_job(job_id: str) -> Response:
        return answer(responses.job_body(*await services.supervisor.find(job_id), g.principal.id))

    @api.post("/jobs/<job_id>/cancel", provide_automatic_options=False)
    async def cancel_job(job_id: str) -> Response:
        g.about = {"job_id": job_id}
        authorization.check_cancel(g.principal, (await services.supervisor.find(job_id))[0])
        job = await services.supervisor.cancel(job_id)
        return answer({"status": job.status, "job_id": job.job_id})

    @api.post("/jobs/<job_id>/retry", provide_automatic_options=False)
    async def retry_job(job_id: str) -> Response:
        return _accepted(await submission.retry(services, job_id))


def _add_cache(api: Blueprint, services: Services) -> None:
    @api.get("/cache/images", provide_automatic_options=False)
    async def list_images() -> Response:
        page = requests.read_query(request.args, requests.ImagePage)
        entries = page.wanted(services.cache.entries())
        shown = entries[page.offset : page.offset + page.limit]
        kept = services.cache.prewarmed()
        bodies = [responses.image_body(one, services.cache.path(one), prewarmed=one.sha256 in kept) for one in shown]
        return answer({"images": bodies, "count": len(entries), "offset": page.offset, "limit": page.limit})

    @api.delete("/cache/images/<checksum>", provide_automatic_options=False)
    async def remove_image(checksum: str) -> Response:
        entry = await services.cache.remove(submission.image_within_limits(services, Checksum.parse(checksum)))
        return answer(responses.image_changed_body("removed", entry))

    @api.put("/cache/images/<checksum>/pin", provide_automatic_options=False)
    async def pin_image(checksum: str) -> Response:
        entry = await services.cache.pin(
            submission.image_within_limits(services, Checksum.parse(checksum)), pinned=True
        )
        return answer(responses.image_changed_body("pinned", entry))

    @api.delete("/cache/images/<checksum>/pin", provide_automatic_options=False)
    async def unpin_image(checksum: str) -> Response:
        entry = await services.cache.pin(
            submission.image_within_limits(services, Checksum.parse(checksum)), pinned=False
        )
        return answer(responses.image_changed_body("unpinned", entry))

    @api.post("/cache/images/<checksum>/verify", provide_automatic_options=False)
    async def verify_image(checksum: str) -> Response:
        entry, intact = await services.cache.verify(submission.image_within_limits(services, Checksum.parse(checksum)))
        return answer(responses.image_changed_body("intact" if intact else "removed", entry))

    @api.post("/cache/fetch", provide_automatic_options=False)
    async def fetch_image() -> Response:
        return _accepted(await submission.submit(services, await _body(requests.FetchRequest)))

    @api.post("/cache/prune", provide_automatic_options=False)
    async def prune_cache() -> Response:
        authorization.check_whole_cache(g.principal)
        pruned = await services.cache.prune()
        return answer({"removed": [entry.digest for entry in pruned.entries], "freed_bytes": pruned.freed})


def _add_named_images(api: Blueprint, services: Services) -> None:
    images = services.images.images

    @api.get("/images", provide_automatic_options=False)
    async def list_named_images() -> Response:
        return answer({"images": [responses.named_image_body(name, image) for name, image in sorted(images.items())]})

    @api.get("/images/<name>", provide_automatic_options=False)
    async def get_named_image(name: str) -> Response:
        found = await services.images.resolve(name)
        return answer(responses.named_image_body(name, images[name]) | responses.resolved_image_body(found))


def _add_volumes(api: Blueprint, services: Services) -> None:
    calls = {name: target.list for name, target in services.back_ends.targets.items()}
    listing: Listing[Volume] = Listing(services, calls, lambda one: (one.target, one.name))
    add_kept_volumes(api, services, answer, _body)

    @api.get("/volumes", provide_automatic_options=False)
    async def list_volumes() -> Response:
        page = requests.read_query(request.args, requests.Page)
        volumes, unavailable = await listing.all()
        seeds = responses.seeds_of(volumes)
        shown = [responses.volume_body(volume, seeds) for volume in volumes[page.offset : page.offset + page.limit]]
        body = {"volumes": shown, "count": len(volumes), "offset": page.offset, "limit": page.limit}
        return answer({**body, "unavailable": unavailable} if unavailable else body)

    @api.delete("/volumes/<target>/<name>", provide_automatic_options=False)
    async def remove_volume(target: str, name: str) -> Response:
        g.about = {"target": target, "volume": name}
        authorization.check_volume(g.principal, target, name)
        seed = await services.supervisor.remove_volume(target, name)
        done = {"status": "removed", "target": target, "name": name}
        return answer({**done, "seed": seed} if seed else done)

    @api.post("/volumes/<target>/<name>/resize", provide_automatic_options=False)
    async def resize_volume(target: str, name: str) -> Response:
        g.about = {"target": target, "volume": name}
        authorization.check_volume(g.principal, target, name)
        body = await _body(requests.ResizeRequest)
        size = body.volume_size_gb * GIB
        volume, grown = await services.supervisor.resize_volume(target, name, size, online=body.online)
        return answer(responses.volume_resized_body(volume, grown=grown))


def _add_host(api: Blueprint, services: Services) -> None:
    listing = BackEndListing(services)

    @api.get("/targets", provide_automatic_options=False)
    async def list_targets() -> Response:
        return answer({"targets": await listing.targets()})

    @api.get("/sources", provide_automatic_options=False)
    async def list_sources() -> Response:
        return answer({"sources": listing.sources()})

    @api.get("/whoami", provide_automatic_options=False)
    async def whoami() -> Response:
        return answer(responses.principal_body(g.principal))


def _accepted(job: Job) -> Response:
    body = {"job_id": job.job_id, **({"repeated": True} if g.repeated else {})}
    return answer(body, 202, {"Location": f"/api/v1/jobs/{job.job_id}"})


async def _body(kind: type[S]) -> S:
    """Return the request's JSON body. Its correlation id becomes the request id if the caller sent no request id."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaTypeError("the body must be sent as application/json")
    data = await request.get_data(cache=False)
    assert isinstance(data, bytes)
    body = requests.read_body(data, kind)
    correlation_id: Any = getattr(body, "correlation_id", None)
    if not g.request_id_given and isinstance(correlation_id, str) and is_sane_id(correlation_id):
        g.request_id = correlation_id
        structlog.contextvars.bind_contextvars(request_id=correlation_id)
    return body


def is_sane_id(text: str) -> bool:
    """Return whether a request id may be echoed: 1 to 128 visible ASCII characters."""
    return re.fullmatch(r"[\x21-\x7e]{1,128}", text) is not None
