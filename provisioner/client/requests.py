"""The requests of the API: method, path, body, and whether a lost one may be sent again. Sends nothing."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote, urlencode

from provisioner.client.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.client import types as t

T = TypeVar("T")

# Seconds; a busy disk may delay the response.
ANSWER_TIMEOUT = 30.0
# The server rolls back, removes or verifies before it responds, and has deadlines of its own.
CHANGE_TIMEOUT = 600.0
# The server zeroes the new part before it responds: a disk of 500 MB/s takes half an hour for 1 TiB.
RESIZE_TIMEOUT = 3600.0
# Seconds without an event or a comment, of which the server sends one every 15 s.
EVENT_TIMEOUT = 20.0
# Seconds before each repeat of a request whose response was lost.
REPEAT_PAUSES = (0.3, 1.0, 3.0)
PAGE = 1000


@dataclass(frozen=True)  # no slots: a generic class with them cannot be called as Request[T](...)
class Request(Generic[T]):
    """A request whose response is a ``T``. ``repeatable``: sending it twice does no more than sending it once."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = False
    timeout: float = ANSWER_TIMEOUT


@dataclass(frozen=True)
class Listing(Generic[T]):
    """A list in pages, whose objects are under ``key``."""

    path: str
    key: str
    params: Mapping[str, str | None] = field(default_factory=dict)

    def page(self, offset: int) -> Request[dict[str, Any]]:
        """Return the request for the page that begins at ``offset``."""
        params = {name: value for name, value in self.params.items() if value is not None}
        return get(f"{self.path}?{urlencode({**params, 'offset': offset, 'limit': PAGE})}")


def api_path(*parts: str) -> str:
    """Return a path of the API. Slashes within a part are quoted."""
    return "/api/v1/" + "/".join(quote(part, safe=":") for part in parts)


def get(path: str) -> Request[Any]:
    """Return a request that changes nothing."""
    return Request("GET", path, repeatable=True)


def changing(
    _type: type[T], method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float = CHANGE_TIMEOUT
) -> Request[T]:
    """Return a request that is sent once, because a repeat would get another answer. Its response is a ``_type``."""
    return Request(method, path, body, timeout=timeout)


def keyed(path: str, body: Mapping[str, Any] | None, key: str | None) -> Request[t.JobAccepted]:
    """Return a request for a job. The idempotency key makes the server treat repeats as one request."""
    return Request("POST", path, body, {"Idempotency-Key": key or str(uuid.uuid4())}, repeatable=True)


def image_fields(
    image: str | None, image_url: str | None, image_type: str | None, checksum: str | None
) -> dict[str, Any]:
    """Return the fields that say which image is meant. Raises SettingsError unless one of the first two is given."""
    if (image is None) == (image_url is None):
        raise SettingsError("give image, the name of one, or image_url")
    return filled(image=image, image_url=image_url, image_type=image_type, checksum=checksum)


def filled(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
