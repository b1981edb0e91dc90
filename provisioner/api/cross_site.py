"""Cross-site request protection: rejects state-changing requests from pages of other sites. Does no I/O.

A browser presents the user's client certificate to any site that a page calls. If a page sends a cross-site request
that needs no CORS preflight (this service never grants one), the request has a foreign ``Origin``, a
``Sec-Fetch-Site`` other than ``same-origin``, or the content type of a form. Other clients send neither header.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioner.contracts.errors import ForbiddenError, UnsupportedMediaTypeError

if TYPE_CHECKING:
    from werkzeug.datastructures import Headers

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
# Content types that a page may send without a preflight (Fetch Standard, "CORS-safelisted request-header").
_FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
# "none": the user typed the address or opened a bookmark.
_OWN_SITE = frozenset({"same-origin", "none"})


def check_cross_site(method: str, media_type: str, headers: Headers, scheme: str) -> None:
    """Raise ForbiddenError if another site's page sent a change, UnsupportedMediaTypeError for a form's content type.

    ``media_type`` is the content type in lower case, without parameters.
    """
    if method in _SAFE_METHODS:
        return
    site = headers.get("Sec-Fetch-Site", "same-origin")
    origin = headers.get("Origin")
    if site not in _OWN_SITE or (origin is not None and not is_own_origin(origin, scheme, headers.get("Host", ""))):
        raise ForbiddenError("the request comes from a page on another site")
    if media_type in _FORM_TYPES:
        raise UnsupportedMediaTypeError("send application/json, or no content type if there is no body")


def is_own_origin(origin: str, scheme: str, host: str) -> bool:
    """Return whether the ``Origin`` header names the host that the request was sent to.

    Behind a proxy that terminates TLS, this service sees plain HTTP although the page was loaded over HTTPS.
    """
    its_scheme, separator, its_host = origin.partition("://")
    if not separator or not host or its_host.lower() != host.lower():
        return False
    return its_scheme in ({"https"} if scheme == "https" else {"http", "https"})
