"""The ASGI app: routes and error responses. ``middleware`` decides who may call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from provisioner.api import health, middleware, page, routes
from provisioner.api.event_stream import release_at_end
from provisioner.api.routes import answer
from provisioner.api.uploads import is_streamed
from provisioner.api.url_rules import MatchedRule
from provisioner.contracts.errors import ProvisionerError, TooManyRequestsError
from provisioner.contracts.tasks import first_cause
from provisioner.server.streamed_body import StreamedBodies

if TYPE_CHECKING:
    from provisioner.api.services import Services

log = structlog.get_logger(__name__)

# The Retry-After of 429 and 503, in seconds.
_RETRY_AFTER = 5
_CATEGORIES = {
    400: "invalid request",
    404: "not found",
    405: "method not allowed",
    408: "request timeout",
    413: "payload too large",
}
# Seconds to send a response; a list of a thousand jobs is 1 MiB.
_RESPONSE_TIMEOUT = 60


def create_app(services: Services) -> QuartTrio:
    """Return the ASGI app for ``services``."""
    app = QuartTrio("libvirt-volume-provisioner", static_folder=None)
    app.url_rule_class = MatchedRule
    app.config["MAX_CONTENT_LENGTH"] = int(services.config.server.max_body)
    app.config["BODY_TIMEOUT"] = middleware.BODY_TIMEOUT
    app.config["RESPONSE_TIMEOUT"] = _RESPONSE_TIMEOUT
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    app.register_blueprint(routes.make_blueprint(services))
    app.register_blueprint(health.make_blueprint(services))
    if services.config.server.page:
        app.register_blueprint(page.make_blueprint())
    middleware.add_hooks(app, services)
    _add_error_handlers(app)
    release_at_end(app)
    app.asgi_app = StreamedBodies(app.asgi_app, is_streamed)  # type: ignore[method-assign]
    return app


def _add_error_handlers(app: QuartTrio) -> None:
    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        status = error.code or 500
        message = error.description or error.name
        if isinstance(error, RequestEntityTooLarge):
            message = f"the body is over {app.config['MAX_CONTENT_LENGTH'] // 1024} KiB"
        elif status == 408:
            message = f"the body did not arrive within {app.config['BODY_TIMEOUT']} seconds"
        elif status == 404:
            message = "there is nothing at this path"
        headers = {name: value for name, value in error.get_headers() if name == "Allow"}
        return _error(_CATEGORIES.get(status, error.name.lower()), message, status, headers)

    @app.errorhandler(Exception)
    async def other_error(error: Exception) -> Response:
        cause = first_cause(error)
        if isinstance(cause, HTTPException):
            return await http_error(cause)
        if isinstance(cause, ProvisionerError) and cause.code != 500:
            headers = {"Retry-After": str(_RETRY_AFTER)} if cause.code in {429, 503} else {}
            if isinstance(cause, TooManyRequestsError) and cause.retry_after is not None:
                headers["Retry-After"] = str(cause.retry_after)
            if cause.code == 401:
                headers["WWW-Authenticate"] = 'Bearer realm="libvirt-volume-provisioner"'
            return _error(cause.category, cause.message, cause.code, headers, cause.reason)
        log.error("a request failed", path=request.path, exc_info=error)
        message = f"the service failed; its log has the details under request id {g.get('request_id')}"
        return _error("internal error", message, 500, {})


def _error(category: str, message: str, status: int, headers: dict[str, str], reason: str | None = None) -> Response:
    g.reason = category
    body = {"error": category, "message": message, "code": status, "reason": reason or category.replace(" ", "-")}
    return answer(body, status, headers)
