"""Tells results from errors: what a response's status and text mean."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from provisioner.client.errors import TEMPORARY, ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping


def read(url: str, status: int, text: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the object of a response. Raises ApiError for an error, or if another service answers."""
    headers = headers or {}
    data = decoded(text)
    more: dict[str, Any] = {
        "retry_after": _seconds(headers.get("retry-after")),
        "request_id": headers.get("x-request-id"),
    }
    if data is None and status in TEMPORARY:  # a proxy without its server
        raise ApiError(f"{url} is not available (HTTP status {status})", status, **more)
    if data is None or 300 <= status < 400:
        words = f"{url} does not answer like a libvirt-volume-provisioner (HTTP status {status})"
        raise ApiError(words, max(status, 400), **more)
    if status >= 400:
        message = str(data.get("message") or f"the server answered with HTTP status {status}")
        raise ApiError(message, status, str(data.get("error", "")), reason=str(data.get("reason", "")), **more)
    return data


def decoded(text: str) -> dict[str, Any] | None:
    """Return the JSON object, or None if it is none."""
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdigit() else None


def check_complete(page: Mapping[str, Any]) -> None:
    """Raise ApiError if targets are missing from a page of a list."""
    missing = page.get("unavailable")
    if missing:
        words = "; ".join(f"target {name} cannot be listed: {reason}" for name, reason in missing.items())
        raise ApiError(words, 503, "service unavailable")
