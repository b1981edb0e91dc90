"""Hooks before and after each request: authentication, authorization, metrics and audit.

The order before a request: assign a request id, check the length, identify the caller, check the origin site, check
the role. After it: count metrics and write the audit record.
"""

from __future__ import annotations

import math
import time
import uuid
from typing import TYPE_CHECKING

import structlog
from quart import Response, g, request

from provisioner.api.cross_site import check_cross_site
from provisioner.api.requests import check_query
from provisioner.api.routes import OPEN_ROUTES, QUERIES, ROLES, is_sane_id
from provisioner.auth.audit_events import LOCAL
from provisioner.auth.authenticator import check_role, presented
from provisioner.contracts.errors import (
    ForbiddenError,
    InvalidRequestError,
    TooManyRequestsError,
    UnauthorizedError,
)
from provisioner.server.connection_table import note_authentication
from provisioner.server.hypercorn_quirks import has_ambiguous_length
from provisioner.tls.peer_certificate import peer_certificate

if TYPE_CHECKING:
    from quart_trio import QuartTrio

    from provisioner.api.services import Services
    from provisioner.config import Role

log = structlog.get_logger(__name__)

_KNOWN_METHODS = {"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"}
# Path and query. The longest valid one, a volume name of 255 percent-encoded characters, is under 1 KiB.
MAX_TARGET = 8192
# Seconds to receive a body of at most 64 KiB. A slower client is rejected with 408.
BODY_TIMEOUT = 20
# Responses about the caller's identity. They are audited even if the caller is unknown.
_REFUSALS = {401, 403, 429}


def add_hooks(app: QuartTrio, services: Services) -> None:
    """Register the hooks of this module for every request of the app."""

    @app.before_request
    async def admit() -> None:
        g.started = time.monotonic()
        g.address = (request.scope.get("client") or [LOCAL])[0]
        _set_request_id()
        _authorize(services)

    @app.after_request
    async def note(response: Response) -> Response:
        seconds = time.monotonic() - g.get("started", time.monotonic())
        services.metrics.requests.labels(_route(), _method(), str(response.status_code)).inc()
        services.metrics.request_seconds.labels(_route(), _method()).observe(seconds)
        _audit(services, response.status_code)
        response.headers["X-Request-ID"] = g.get("request_id", "")
        if g.get("close_connection"):
            response.headers["Connection"] = "close"
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.teardown_request
    async def gone(_error: BaseException | None) -> None:
        if not g.get("written_down"):  # the client disconnected before the response; the change may be done
            _audit(services, "client gone")


def _authorize(services: Services) -> None:
    """Raise an error unless the request may continue to its route."""
    if has_ambiguous_length(request.http_version, {name.lower() for name in request.headers.keys()}):  # noqa: SIM118
        g.close_connection = True
        raise InvalidRequestError(
            "the request has both Content-Length and Transfer-Encoding, or is HTTP/1.0 and chunked"
        )
    if len(request.scope.get("raw_path") or b"") + len(request.query_string) > MAX_TARGET:
        raise InvalidRequestError(f"the path and its query are over {MAX_TARGET} bytes")
    endpoint = request.endpoint
    if endpoint in OPEN_ROUTES and (endpoint != "service.metrics" or services.config.auth.open_metrics):
        return
    if endpoint is None and not request.path.startswith("/api/"):
        return  # the answer is 404
    _identify(services)
    check_cross_site(request.method, request.mimetype, request.headers, request.scheme)
    if endpoint is not None:
        check_role(g.principal, _least_role(endpoint))
        if endpoint not in OPEN_ROUTES:  # scrapers may send parameters of their own
            check_query(request.args, QUERIES.get(endpoint))


def _least_role(endpoint: str) -> Role:
    """Return the least role for a route. Raises ForbiddenError if ``ROLES`` does not list the route."""
    if endpoint == "service.metrics":
        return "viewer"
    role = ROLES.get(endpoint)
    if role is None:
        log.error("a route has no role and is refused", endpoint=endpoint)
        raise ForbiddenError("this route is closed: no role is set for it")
    return role


def _set_request_id() -> None:
    given = request.headers.get("X-Request-ID", "")
    g.request_id_given = is_sane_id(given)
    g.request_id = given if g.request_id_given else str(uuid.uuid4())
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _identify(services: Services) -> None:
    """Identify the caller. Failed attempts from the same address do not block a valid credential."""
    certificate = peer_certificate()
    try:
        g.principal = services.authenticator.identify(certificate, request.headers)
        note_authentication(valid=True)
    except UnauthorizedError:
        note_authentication(valid=False)
        shown = presented(certificate, request.headers)
        wait, g.is_news = services.auditor.failed(g.address, shown)
        # A request without a credential is not a guess: answer 401, so that the client learns that it needs one.
        if wait is None or shown == "nothing":
            raise
        raise TooManyRequestsError(
            "too many failed authentications from this address", retry_after=math.ceil(wait)
        ) from None


def _audit(services: Services, status: int | str) -> None:
    g.written_down = True
    principal = g.get("principal")
    if not g.get("is_news", True) or (principal is None and status not in _REFUSALS):
        return
    if status == "client gone" and _method() in {"GET", "HEAD"}:
        return
    services.auditor.request(
        _method(),
        _route(),
        status,
        address=g.address,
        request_id=g.request_id,
        principal=principal,
        reason=g.get("reason"),
        about=g.get("about"),
    )


def _route() -> str:
    return request.url_rule.rule.replace("<", "{").replace(">", "}") if request.url_rule else "unmatched"


def _method() -> str:
    return request.method if request.method in _KNOWN_METHODS else "other"
