"""The routes under ``/api/v1``: parse the request, call the responsible part and render the response."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog
import trio
from quart import Blueprint, Response, g, request

from provisioner.api import schemas
from provisioner.api.volume_listing import VolumeListing
from provisioner.auth import authorization
from provisioner.contracts import Checksum, ImageUrl
from provisioner.contracts.errors import InvalidRequestError, SourceError, UnsupportedMediaTypeError

if TYPE_CHECKING:
    from provisioner.api.services import Services
    from provisioner.config import Role
    from provisioner.jobs import JobSpec

S = TypeVar("S", bound=msgspec.Struct)

# Jobs rendered before the event loop gets control again: less than a millisecond.
_RENDERED_AT_ONCE = 100

# The least role for each route. A route that is neither here nor in OPEN_ROUTES is forbidden to every caller.
ROLES: dict[str, Role] = {
    "v1.submit_job": "operator",
    "v1.list_jobs": "viewer",
    "v1.get_job": "viewer",
    "v1.cancel_job": "operator",
    "v1.list_images": "viewer",
    "v1.remove_image": "admin",
    "v1.pin_image": "operator",
    "v1.unpin_image": "operator",
    "v1.verify_image": "operator",
    "v1.fetch_image": "operator",
    "v1.prune_cache": "admin",
    "v1.list_volumes": "viewer",
    "v1.remove_volume": "admin",
}
# The query parameters of each route; a route that is not listed has none.
QUERIES: dict[str, type[msgspec.Struct]] = {
    "v1.list_jobs": schemas.JobPage,
    "v1.list_images": schemas.Page,
    "v1.list_volumes": schemas.Page,
}
# The routes that need no credential; the configuration can close /metrics.
OPEN_ROUTES = frozenset(
    {"service.health", "service.healthz", "service.livez", "service.readyz", "service.metrics"},
)


def answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(msgspec.json.encode(body), status, headers, content_type="application/json")


def make_blueprint(services: Services) -> Blueprint:
    """Return the blueprint of all ``/api/v1`` routes."""
    api = Blueprint("v1", __name__, url_prefix="/api/v1")
    _add_jobs(api, services)
    _add_cache(api, services)
    _add_volumes(api, services)
    return api


def _add_jobs(api: Blueprint, services: Services) -> None:
    @api.post("/jobs", provide_automatic_options=False)
    async def submit_job() -> Response:
        return await _accept(services, await _body(schemas.JobRequest))

    @api.get("/jobs", provide_automatic_options=False)
    async def list_jobs() -> Response:
        page = schemas.read_query(request.args, schemas.JobPage)
        jobs, count = await services.store.page(page.wanted(), page.offset, page.limit)
        snapshot, bodies = services.supervisor.snapshot, []
        for start in range(0, len(jobs), _RENDERED_AT_ONCE):
            some = jobs[start : start + _RENDERED_AT_ONCE]
            bodies += [schemas.job_body(job, snapshot(job.job_id), g.principal.id) for job in some]
            await trio.lowlevel.checkpoint()
        return answer({"jobs": bodies, "count": count, "offset": page.offset, "limit": page.limit})

    @api.get("/jobs/<job_id>", provide_automatic_options=False)
    async def get_job(job_id: str) -> Response:
        return answer(schemas.job_body(*await services.supervisor.find(job_id), g.principal.id))

    @api.post("/jobs/<job_id>/cancel", provide_automatic_options=False)
    async def cancel_job(job_id: str) -> Response:
        g.about = {"job_id": job_id}
        authorization.check_cancel(g.principal, (await services.supervisor.find(job_id))[0])
        job = await services.supervisor.cancel(job_id)
        return answer({"status": job.status, "job_id": job.job_id})


def _add_cache(api: Blueprint, services: Services) -> None:
    @api.get("/cache/images", provide_automatic_options=False)
    async def list_images() -> Response:
        page = schemas.read_query(request.args, schemas.Page)
        entries = services.cache.entries()
        shown = entries[page.offset : page.offset + page.limit]
        kept = services.cache.prewarmed()
        bodies = [schemas.image_body(one, services.cache.path(one), prewarmed=one.sha256 in kept) for one in shown]
        return answer({"images": bodies, "count": len(entries), "offset": page.offset, "limit": page.limit})

    @api.delete("/cache/images/<checksum>", provide_automatic_options=False)
    async def remove_image(checksum: str) -> Response:
        entry = await services.cache.remove(_image_within_limits(services, Checksum.parse(checksum)))
        return answer(schemas.image_changed_body("removed", entry))

    @api.put("/cache/images/<checksum>/pin", provide_automatic_options=False)
    async def pin_image(checksum: str) -> Response:
        entry = await services.cache.pin(_image_within_limits(services, Checksum.parse(checksum)), pinned=True)
        return answer(schemas.image_changed_body("pinned", entry))

    @api.delete("/cache/images/<checksum>/pin", provide_automatic_options=False)
    async def unpin_image(checksum: str) -> Response:
        entry = await services.cache.pin(_image_within_limits(services, Checksum.parse(checksum)), pinned=False)
        return answer(schemas.image_changed_body("unpinned", entry))

    @api.post("/cache/images/<checksum>/verify", provide_automatic_options=False)
    async def verify_image(checksum: str) -> Response:
        entry, intact = await services.cache.verify(_image_within_limits(services, Checksum.parse(checksum)))
        return answer(schemas.image_changed_body("intact" if intact else "removed", entry))

    @api.post("/cache/fetch", provide_automatic_options=False)
    async def fetch_image() -> Response:
        return await _accept(services, await _body(schemas.FetchRequest))

    @api.post("/cache/prune", provide_automatic_options=False)
    async def prune_cache() -> Response:
        authorization.check_whole_cache(g.principal)
        pruned = await services.cache.prune()
        return answer({"removed": [entry.digest for entry in pruned.entries], "freed_bytes": pruned.freed})


def _add_volumes(api: Blueprint, services: Services) -> None:
    listing = VolumeListing(services)

    @api.get("/volumes", provide_automatic_options=False)
    async def list_volumes() -> Response:
        page = schemas.read_query(request.args, schemas.Page)
        volumes, unavailable = await listing.all()
        shown = [schemas.volume_body(volume) for volume in volumes[page.offset : page.offset + page.limit]]
        body = {"volumes": shown, "count": len(volumes), "offset": page.offset, "limit": page.limit}
        return answer({**body, "unavailable": unavailable} if unavailable else body)

    @api.delete("/volumes/<target>/<name>", provide_automatic_options=False)
    async def remove_volume(target: str, name: str) -> Response:
        g.about = {"target": target, "volume": name}
        authorization.check_volume(g.principal, target, name)
        await services.supervisor.remove_volume(target, name)
        return answer({"status": "removed", "target": target, "name": name})


async def _accept(services: Services, body: schemas.JobRequest | schemas.FetchRequest) -> Response:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise InvalidRequestError("Idempotency-Key must be 1 to 255 visible ASCII characters")
    about = {"volume": getattr(body, "volume_name", None), "target": getattr(body, "target", None)}
    g.about = {name: value for name, value in about.items() if value}
    spec = body.spec()
    _check_limits(services, spec)
    allowed = g.principal.limits.sources
    if allowed is not None:  # checked again when the job looks in the cache, whose images may have changed
        spec = msgspec.structs.replace(spec, allowed_sources=tuple(allowed))
    job = await services.supervisor.submit(
        spec,
        request_id=g.request_id,
        principal=g.principal.id,
        idempotency_key=key,
        max_jobs=g.principal.limits.max_jobs,
        request=msgspec.to_builtins(body),
    )
    g.about["job_id"] = job.job_id
    return answer({"job_id": job.job_id}, 202, {"Location": f"/api/v1/jobs/{job.job_id}"})


def _check_limits(services: Services, spec: JobSpec) -> None:
    """Raise ForbiddenError if the caller's limits do not cover the job, InvalidRequestError if the job is invalid."""
    g.about["source"] = spec.image_url.origin
    authorization.check_source(g.principal, spec.image_url, _source_name(services, spec.image_url))
    if spec.checksum is not None:  # the cache finds an image by digest, from any source
        _image_within_limits(services, spec.checksum)
    if spec.volume_name is not None:
        target = services.back_ends.target(spec.target).name
        g.about["target"] = target
        authorization.check_volume(g.principal, target, spec.volume_name)


def _source_name(services: Services, image_url: ImageUrl) -> str:
    source = services.back_ends.source_for(image_url)
    return next(name for name, one in services.back_ends.sources.items() if one is source)


def _image_within_limits(services: Services, checksum: Checksum) -> str:
    """Return the digest if the caller's limits cover the image. Raises ForbiddenError, InvalidRequestError."""
    digest = str(checksum)
    g.about = {**g.get("about", {}), "image": digest}
    entry = next((one for one in services.cache.entries() if digest in {one.digest, f"sha512:{one.sha512}"}), None)
    if entry is not None and g.principal.limits.sources is not None:
        image_url = ImageUrl.parse(entry.url)
        try:
            source = _source_name(services, image_url)
        except SourceError:  # its source is no longer configured
            source = None
        authorization.check_source(g.principal, image_url, source)
    return digest


async def _body(kind: type[S]) -> S:
    """Return the request's JSON body. Its correlation id becomes the request id if the caller sent no request id."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaTypeError("the body must be sent as application/json")
    data = await request.get_data(cache=False)
    assert isinstance(data, bytes)
    body = schemas.read_body(data, kind)
    correlation_id: Any = getattr(body, "correlation_id", None)
    if not g.request_id_given and isinstance(correlation_id, str) and is_sane_id(correlation_id):
        g.request_id = correlation_id
        structlog.contextvars.bind_contextvars(request_id=correlation_id)
    return body


def is_sane_id(text: str) -> bool:
    """Return whether a request id may be echoed: 1 to 128 visible ASCII characters."""
    return re.fullmatch(r"[\x21-\x7e]{1,128}", text) is not None
