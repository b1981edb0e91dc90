"""Submits jobs for a request: checks the caller's limits anew, for new requests and for retries alike."""

from __future__ import annotations

import re
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from quart import g, request

from provisioner.api import requests, responses
from provisioner.auth import authorization
from provisioner.contracts.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    ProvisionerError,
    SourceError,
)
from provisioner.contracts.urls import ImageUrl
from provisioner.pipeline.dry_run import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from provisioner.api.services import Services
    from provisioner.config import SignatureSettings
    from provisioner.contracts import Checksum
    from provisioner.jobs import Job, JobSpec
    from provisioner.pipeline.cloud_init import CloudInit

R = TypeVar("R", bound=requests.FetchRequest)


async def submit(services: Services, body: requests.FetchRequest) -> Job:
    """Submit the job of a request body."""
    body, signature = await _resolved(services, body)
    cloud_init = body.cloud_init or None if isinstance(body, requests.JobRequest) else None
    return await _submit(services, _spec(body, signature), body.asked(), cloud_init)


def _spec(body: requests.FetchRequest, signature: SignatureSettings | None) -> JobSpec:
    return msgspec.structs.replace(body.spec(), signature=signature)


async def _resolved(services: Services, body: R) -> tuple[R, SignatureSettings | None]:
    """Return the request with the url of the image that it names, and the type, checksum and signature that go with it.

    What the request says itself wins. Raises InvalidRequestError, ForbiddenError before the publisher is asked if the
    caller's limits do not cover its server, and SourceError if the publisher does not answer.
    """
    if body.image and body.image_url:
        raise InvalidRequestError("give image_url or image, not both")
    if not body.image:
        if not body.image_url:
            raise InvalidRequestError("image_url is required")
        body = _of_upload(services, body)
        return msgspec.structs.replace(body, image_type=body.image_type or requests.DEFAULT_FORMAT), None
    try:
        _check_url(services, services.images.named(body.image).asked_first)
        found = await services.images.resolve(body.image)
    except NotFoundError as error:
        raise InvalidRequestError(error.message) from error
    checksum = body.checksum or (str(found.checksum) if found.checksum else msgspec.UNSET)
    image_type = body.image_type or found.image_type
    body = msgspec.structs.replace(body, image_url=found.url.text, image_type=image_type, checksum=checksum)
    return body, found.signature


def _of_upload(services: Services, body: R) -> R:
    """Return a request for an uploaded image with the image's checksum and type; another request unchanged.

    The name may stand for another image when the job runs. Raises InvalidRequestError if there is no such image.
    """
    url, source = ImageUrl.parse(body.image_url or ""), services.cache.upload_source
    if not source.owns(url) or body.checksum:
        return body
    _check_url(services, url)
    try:
        entry = source.look_up(url)
    except SourceError as error:
        raise InvalidRequestError(error.message) from error
    return msgspec.structs.replace(body, image_type=body.image_type or entry.format, checksum=entry.digest)


async def dry_run(services: Services, body: requests.JobRequest) -> tuple[Plan, list[ProvisionerError]]:
    """Return what the job would do, and why it would be refused. Changes nothing.

    A request beyond the caller's limits learns that alone: neither the source nor the target is asked.
    """
    g.about = {"volume": body.volume_name}
    spec = _spec(*await _resolved(services, body))
    refusals = list(_outside_limits(services, spec))
    if refusals:
        return Plan(image_url=spec.image_url.without_query), refusals
    allowed = g.principal.limits.sources
    if allowed is not None:
        spec = msgspec.structs.replace(spec, allowed_sources=tuple(allowed))
    return await services.supervisor.dry_run(spec, g.principal.id, g.principal.limits.max_jobs)


def _outside_limits(services: Services, spec: JobSpec) -> Iterator[ProvisionerError]:
    for check in (_check_source, _check_image, _check_volume):
        try:
            check(services, spec)
        except ProvisionerError as error:
            yield error


async def retry(services: Services, job_id: str) -> Job:
    """Submit the request of a job that has ended once more, as the caller's own.

    Raises JobNotFoundError; ConflictError while the job is active, or if it had cloud-init data, which is not kept;
    ForbiddenError if its url may be another caller's secret.
    """
    g.about = {"job_id": job_id}
    job, _ = await services.supervisor.find(job_id)
    if not job.status.ended:
        raise ConflictError(f"job {job_id} is still {job.status}; it can be retried when it has ended")
    if job.spec.cloud_init is not None:
        raise ConflictError(f"the cloud-init data of job {job_id} was removed at its end; submit a new job with it")
    asked = responses.asked(job)
    if job.spec.image_url.has_secret and job.principal != g.principal.id:
        raise ForbiddenError("the image's url has a query that only the job's submitter may use; submit a new job")
    target = job.spec.target if "target" in asked else None
    spec = msgspec.structs.replace(job.spec, target=target, allowed_sources=None)
    return await _submit(services, spec, asked)


async def _submit(
    services: Services, spec: JobSpec, asked: Mapping[str, Any], cloud_init: CloudInit | None = None
) -> Job:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise InvalidRequestError("Idempotency-Key must be 1 to 255 visible ASCII characters")
    about = {"volume": spec.volume_name, "target": asked.get("target")}
    g.about = {name: value for name, value in about.items() if value}
    check_limits(services, spec)
    allowed = g.principal.limits.sources
    if allowed is not None:  # checked again when the job looks in the cache, whose images may have changed
        spec = msgspec.structs.replace(spec, allowed_sources=tuple(allowed))
    job_id = str(uuid.uuid4())
    job = await services.supervisor.submit(
        spec,
        job_id=job_id,
        request_id=g.request_id,
        principal=g.principal.id,
        idempotency_key=key,
        max_jobs=g.principal.limits.max_jobs,
        request=asked,
        cloud_init=cloud_init,
        traceparent=_traceparent(),
    )
    g.about["job_id"] = job.job_id
    g.repeated = job.job_id != job_id
    return job


def _traceparent() -> str | None:
    """Return the request's trace context; None if it has none that can be kept. It never makes a request invalid."""
    text = request.headers.get("traceparent", "").strip()
    return text if re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}[\x21-\x7e]{0,64}", text) else None


def check_limits(services: Services, spec: JobSpec) -> None:
    """Raise ForbiddenError if the caller's limits do not cover the job, InvalidRequestError if the job is invalid."""
    for check in (_check_source, _check_image, _check_volume):
        check(services, spec)


def _check_source(services: Services, spec: JobSpec) -> None:
    _check_url(services, spec.image_url)


def _check_url(services: Services, url: ImageUrl) -> None:
    g.about = {**g.get("about", {}), "source": url.origin}
    authorization.check_source(g.principal, url, source_name(services, url))


def _check_image(services: Services, spec: JobSpec) -> None:
    if spec.checksum is None:
        return
    # The cache finds an image by digest, from any source.
    entry, allowed = services.cache.find(spec.checksum, spec.image_url.text, None), may_use(services)
    if entry is None or allowed is None or not any(map(allowed, services.cache.urls_of(entry))):
        image_within_limits(services, spec.checksum)


def _check_volume(services: Services, spec: JobSpec) -> None:
    if spec.volume_name is not None:
        target = services.back_ends.target(spec.target).name
        g.about["target"] = target
        authorization.check_volume(g.principal, target, spec.volume_name)
        if spec.seed_name is not None:
            authorization.check_volume(g.principal, target, spec.seed_name)


def may_use(services: Services) -> Callable[[str], bool] | None:
    """Return a check whether the caller may use an image from some url, or None if its sources are not limited."""
    if g.principal.limits.sources is None:
        return None

    def check(text: str) -> bool:
        with suppress(InvalidRequestError, SourceError, ForbiddenError):
            image_url = ImageUrl.parse(text)
            authorization.check_source(g.principal, image_url, source_name(services, image_url))
            return True
        return False

    return check


def source_name(services: Services, image_url: ImageUrl) -> str:
    """Return the name of the source that owns the url. Raises UrlNotAllowedError."""
    source = services.back_ends.source_for(image_url)
    return next(name for name, one in services.back_ends.sources.items() if one is source)


def image_within_limits(services: Services, checksum: Checksum) -> str:
    """Return the digest if the caller's limits cover the image. Raises ForbiddenError, InvalidRequestError."""
    digest = str(checksum)
    g.about = {**g.get("about", {}), "image": digest}
    entry = next((one for one in services.cache.entries() if digest in {one.digest, f"sha512:{one.sha512}"}), None)
    if entry is not None and g.principal.limits.sources is not None:
        image_url = source = None
        with suppress(InvalidRequestError, SourceError):  # found without its index, or its source is not configured now
            image_url = ImageUrl.parse(entry.url)
            source = source_name(services, image_url)
        authorization.check_source(g.principal, image_url, source)
    return digest
