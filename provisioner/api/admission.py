"""Before and after each request: who is let in to do what, and what is written down of it.

Owns the order: an id for the request, its length, the caller, the role; and the books that are kept at its end.
"""

from __future__ import annotations

import math
import time
import uuid
from typing import TYPE_CHECKING

import structlog
import trio
from quart import Response, g, request
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from provisioner.api.auditing import LOCAL
from provisioner.api.auth import check_role, presented
from provisioner.api.peer_tls import peer_certificate
from provisioner.api.routes import ROLES, is_sane_id
from provisioner.contracts.errors import (
    InvalidRequestError,
    ProvisionerError,
    TooManyRequestsError,
    UnauthorizedError,
)

if TYPE_CHECKING:
    from quart_trio import QuartTrio

    from provisioner.api.services import Services

_KNOWN_METHODS = {"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"}
# Path and query. The longest sensible one, a volume's name of 255 characters all of them quoted, is under 1 KiB.
MAX_TARGET = 8192
# Seconds a body may take; the largest is 64 KiB. A slower client is cut.
BODY_TIMEOUT = 20
# Answers that concern who is calling; they are worth a line although nobody was recognised.
_REFUSALS = {401, 403, 429}


def add_hooks(app: QuartTrio, services: Services) -> None:
    """Put what this module does around every request of the app."""

    @app.before_request
    async def admit() -> None:
        g.started = time.monotonic()
        g.address = (request.scope.get("client") or [LOCAL])[0]
        _name_request()
        try:
            _let_in(services)
        except ProvisionerError:
            await _see_body_out(keep=False)
            raise
        await _see_body_out(keep=g.get("principal") is not None)

    @app.after_request
    async def note(response: Response) -> Response:
        seconds = time.monotonic() - g.get("started", time.monotonic())
        services.metrics.requests.labels(_route(), _method(), str(response.status_code)).inc()
        services.metrics.request_seconds.labels(_route(), _method()).observe(seconds)
        _write_down(services, response.status_code)
        response.headers["X-Request-ID"] = g.get("request_id", "")
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.teardown_request
    async def gone(_error: BaseException | None) -> None:
        if not g.get("written_down"):  # the client hung up before its answer; what it asked for may be done
            _write_down(services, "client gone")


def _let_in(services: Services) -> None:
    """Raises InvalidRequestError, UnauthorizedError, TooManyRequestsError, ForbiddenError."""
    if len(request.scope.get("raw_path") or b"") + len(request.query_string) > MAX_TARGET:
        raise InvalidRequestError(f"the path and its query are over {MAX_TARGET} bytes")
    closed_metrics = request.path == "/metrics" and not services.config.auth.open_metrics
    if request.path.startswith("/api/") or closed_metrics:
        _recognise(services)
        check_role(g.principal, ROLES.get(request.endpoint or "", "viewer"))


async def _see_body_out(*, keep: bool) -> None:
    """Over HTTP/2: wait for the end of the body; an answer before it breaks hypercorn's connections.

    Only of callers we know anything of it is kept in memory.
    """
    if request.http_version != "2":
        return
    if keep:
        await request.get_data()
        return
    seen = 0
    with trio.move_on_after(BODY_TIMEOUT):
        async for piece in request.body:
            seen += len(piece)
            if seen > (request.max_content_length or 0):
                raise RequestEntityTooLarge
        return
    raise RequestTimeout


def _name_request() -> None:
    given = request.headers.get("X-Request-ID", "")
    g.request_id_given = is_sane_id(given)
    g.request_id = given if g.request_id_given else str(uuid.uuid4())
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _recognise(services: Services) -> None:
    """Who is calling. A good credential is never held up, whatever others behind its address do."""
    certificate = peer_certificate()
    try:
        g.principal = services.authenticator.identify(certificate, request.headers)
    except UnauthorizedError:
        shown = presented(certificate, request.headers)
        wait, g.is_news = services.auditor.failed(g.address, shown)
        # Who shows nothing guesses nothing, and has to learn that a credential is asked for.
        if wait is None or shown == "nothing":
            raise
        raise TooManyRequestsError(
            "too many failed authentications from this address", retry_after=math.ceil(wait)
        ) from None


def _write_down(services: Services, status: int | str) -> None:
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
