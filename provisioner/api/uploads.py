"""The routes for uploads: how far one has come, and the upload itself, whose body is streamed."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quart import Response, g, request

from provisioner.api import requests, responses
from provisioner.api.submission import may_use, source_name
from provisioner.auth import authorization
from provisioner.cache import Upload
from provisioner.contracts import Checksum
from provisioner.contracts.errors import (
    ForbiddenError,
    InvalidRequestError,
    LengthRequiredError,
    PayloadTooLargeError,
    UnavailableError,
)
from provisioner.server.streamed_body import streamed_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from quart import Blueprint

    from provisioner.api.services import Services
    from provisioner.cache import Entry

PATH = "/cache/images"
# The form of RFC 9110, 14.4. "*": all bytes have been sent; the body is empty.
_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19})", re.ASCII)


def is_streamed(method: str, path: str) -> bool:
    """Return whether the route reads the request's body as it arrives."""
    # The path may be spelled with two slashes at its start, or be a whole url.
    return method == "PUT" and path.endswith(f"/api/v1{PATH}")


def add_uploads(api: Blueprint, services: Services, answer: Callable[..., Response]) -> None:
    """Add the routes. ``answer`` makes a response."""
    uploads = services.cache.uploads

    @api.get(f"{PATH}/<checksum>/upload", provide_automatic_options=False)
    async def get_upload(checksum: str) -> Response:
        query = requests.read_query(request.args, requests.UploadStateQuery)
        upload = _wanted(services, checksum, query.name or "", query.size or 0)
        found = services.cache.find(Checksum("sha256", upload.sha256), upload.url.text, None, may_use(services))
        running, offset = uploads.state(upload)
        if found is not None:
            return answer(responses.upload_body("cached", upload, found.size))
        if upload.size and not running:
            await services.cache.check_room(upload.size - offset)
        return answer(responses.upload_body("uploading" if running else "waiting", upload, offset))

    @api.put(PATH, provide_automatic_options=False)
    async def upload_image() -> Response:
        query = requests.read_query(request.args, requests.UploadQuery)
        start, size = part_of(request.headers.get("Content-Range"), request.content_length)
        upload = _wanted(services, query.checksum, query.name or "", size)
        upload = replace(upload, image_format=query.image_type or None, pinned=query.pinned == "true")
        if upload.image_format is not None:
            services.back_ends.converter(upload.image_format)  # raises InvalidRequestError
        entry = await services.cache.use_cached(upload, may_use(services))
        if entry is not None:
            return answer(_done("cached", services, upload, entry))
        entry = await uploads.receive(upload, start, streamed_body(request.scope))
        return answer(_done("uploaded", services, upload, entry), 201)


def _done(status: str, services: Services, upload: Upload, entry: Entry) -> dict[str, Any]:
    image = responses.image_body(entry, services.cache.path(entry))
    return {"status": status, "image_url": upload.url.text, **image}


def _wanted(services: Services, checksum: str, name: str, size: int) -> Upload:
    """Return the upload that a request is about, if the caller and the service permit it. ``size``: 0 if unknown.

    Raises InvalidRequestError, ForbiddenError, PayloadTooLargeError, UnavailableError.
    """
    digest = Checksum.parse(checksum)
    if digest.algorithm != "sha256":
        raise InvalidRequestError("checksum: uploads need the image's sha256")
    name = name or digest.hex
    if re.fullmatch(r"[0-9a-f]{64}", name) and name != digest.hex:
        raise InvalidRequestError("name: it looks like the checksum of another image")
    upload = Upload(digest.hex, size, name, g.principal.id)
    g.about = {"image": upload.digest, "source": upload.url.origin}
    authorization.check_source(g.principal, upload.url, source_name(services, upload.url))
    limit = services.config.cache.max_upload
    if not limit:
        raise ForbiddenError("uploads are switched off here (max_upload in [cache])")
    if size > limit:
        raise PayloadTooLargeError(f"the image has {size} bytes; uploads may have {limit} (max_upload in [cache])")
    if services.supervisor.draining:
        raise UnavailableError("the service is stopping and takes no uploads")
    return upload


def part_of(content_range: str | None, length: int | None) -> tuple[int, int]:
    """Return the offset of the body's first byte in the image, and the image's size. Raises ProvisionerError."""
    if length is None:
        raise LengthRequiredError("send Content-Length: the size of an image must be known before it is received")
    if content_range is None:
        start, size = 0, length
    else:
        match = _RANGE.fullmatch(content_range.strip())
        if match is None:
            raise InvalidRequestError("Content-Range must have the form: bytes FIRST-LAST/SIZE")
        size = int(match[3])
        start, stop = (size, size) if match[1] is None else (int(match[1]), int(match[2]) + 1)
        if not start <= stop == size or stop - start != length:
            raise InvalidRequestError(
                "Content-Range must reach to the image's last byte, and Content-Length must be the number of its bytes"
            )
    if not 0 < size < 2**63:
        raise InvalidRequestError("the image is empty, or larger than any file")
    return start, size
