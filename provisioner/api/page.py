"""The web page at ``/``: static files that anyone may read. What they show comes from the API, with its credentials."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from quart import Blueprint, Response, request
from werkzeug.exceptions import NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDPOINTS = frozenset({"page.index", "page.file"})
INDEX = "index.html"
# Nothing but the page's own files and its own API: no inline code, no other site, no frame around it. The scripts never
# turn text into markup or code, and "trusted-types" makes a browser refuse it too.
CONTENT_SECURITY_POLICY = "; ".join([
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "frame-ancestors 'none'",
    "base-uri 'none'",
    "form-action 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
])  # fmt: skip
_HEADERS = {
    "Cache-Control": "no-cache",  # a browser may keep a file, but asks each time whether it is still the same
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".yaml": "application/yaml",
}
_API_DOCUMENT = "api.yaml"


def page_files() -> Mapping[str, bytes]:
    """Return the page's files by name, and the API's document. Reads some 200 KiB from the disk."""
    package = resources.files("provisioner.api")
    files = {file.name: file.read_bytes() for file in (package / "static").iterdir() if _suffix(file.name) in _TYPES}
    document = package / _API_DOCUMENT
    if not document.is_file():  # in a checkout it is at the top; a wheel has it in the package
        document = Path(__file__).parents[2] / _API_DOCUMENT
    return {**files, _API_DOCUMENT: document.read_bytes()}


def make_blueprint() -> Blueprint:
    """Return the blueprint of ``/`` and ``/page/...``. The files are read once, so requests do no I/O."""
    page = Blueprint("page", __name__)
    files = {name: (data, hashlib.sha256(data).hexdigest()[:32]) for name, data in page_files().items()}

    def send(name: str) -> Response:
        if name not in files:
            raise NotFound
        data, etag = files[name]
        headers = {**_HEADERS, "ETag": f'"{etag}"'}
        if request.if_none_match.contains_weak(etag):
            return Response(b"", 304, headers)
        return Response(data, 200, headers, content_type=_TYPES[_suffix(name)])

    @page.get("/", provide_automatic_options=False)
    async def index() -> Response:
        return send(INDEX)

    @page.get("/page/<name>", provide_automatic_options=False)
    async def file(name: str) -> Response:
        return send(name)

    return page


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]
