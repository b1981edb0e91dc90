"""The ASGI app: routes under authentication, one shape for every error, an id and a count for every request."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import structlog
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from provisioner.api import health, routes
from provisioner.api.auth import check_role
from provisioner.api.peer_tls import peer_certificate
from provisioner.api.routes import ROLES, answer, is_sane_id
from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.tasks import first_cause

if TYPE_CHECKING:
    from provisioner.api.services import Services

log = structlog.get_logger(__name__)

# Seconds a client is told to wait where trying again may help.
_RETRY_AFTER = 5
_CATEGORIES = {400: "invalid request", 404: "not found", 405: "method not allowed", 413: "payload too large"}
_KNOWN_METHODS = {"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"}


def create_app(services: Services) -> QuartTrio:
    """The app over the daemon's parts."""
    app = QuartTrio("libvirt-volume-provisioner", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = int(services.config.server.max_body)
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    app.register_blueprint(routes.make_blueprint(services))
    app.register_blueprint(health.make_blueprint(services))
    _add_request_hooks(app, services)
    _add_error_handlers(app)
    return app


def _add_request_hooks(app: QuartTrio, services: Services) -> None:
    @app.before_request
    async def admit() -> None:
        g.started = time.monotonic()
        given = request.headers.get("X-Request-ID", "")
        g.request_id_given = is_sane_id(given)
        g.request_id = given if g.request_id_given else str(uuid.uuid4())
        structlog.contextvars.bind_contextvars(request_id=g.request_id)
        if request.http_version == "2":  # an answer before the body's end breaks hypercorn's HTTP/2 connections
            await request.get_data()
        closed_metrics = request.path == "/metrics" and not services.config.auth.open_metrics
        if request.path.startswith("/api/") or closed_metrics:
            g.principal = services.authenticator.identify(peer_certificate(), request.headers)
            check_role(g.principal, ROLES.get(request.endpoint or "", "viewer"))

    @app.after_request
    async def note(response: Response) -> Response:
        rule = request.url_rule.rule.replace("<", "{").replace(">", "}") if request.url_rule else "unmatched"
        method = request.method if request.method in _KNOWN_METHODS else "other"
        seconds = time.monotonic() - g.get("started", time.monotonic())
        services.metrics.requests.labels(rule, method, str(response.status_code)).inc()
        services.metrics.request_seconds.labels(rule, method).observe(seconds)
        response.headers["X-Request-ID"] = g.get("request_id", "")
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def _add_error_handlers(app: QuartTrio) -> None:
    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        status = error.code or 500
        message = error.description or error.name
        if isinstance(error, RequestEntityTooLarge):
            message = f"the body is over {app.config['MAX_CONTENT_LENGTH'] // 1024} KiB"
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
            if cause.code == 401:
                headers["WWW-Authenticate"] = 'Bearer realm="libvirt-volume-provisioner"'
            return _error(cause.category, cause.message, cause.code, headers)
        log.error("a request failed", path=request.path, exc_info=error)
        message = f"the service failed; the log has more under request id {g.get('request_id')}"
        return _error("internal error", message, 500, {})


def _error(category: str, message: str, status: int, headers: dict[str, str]) -> Response:
    return answer({"error": category, "message": message, "code": status}, status, headers)
