# SPDX-License-Identifier: MIT
"""Requests to the REST API with what ansible-core brings along: no other library is needed on the host."""

from __future__ import annotations

import json
import ssl
import time
import uuid
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit

from ansible.module_utils.basic import env_fallback
from ansible.module_utils.urls import open_url

DEFAULT_URL = "http://127.0.0.1:8080"
# Seconds; a busy disk may delay a response.
ANSWER_TIMEOUT = 30
# Seconds before each repeat of a request whose response was lost.
REPEAT_PAUSES = (0.3, 1.0, 3.0)
# Temporary states of the server, or of a proxy in front of it.
TEMPORARY = {429, 502, 503, 504}
PAGE = 1000


def _option(kind, name, **more):
    return dict(type=kind, fallback=(env_fallback, ["LVP_" + name.upper()]), **more)


def connection_options():
    """Return the options that all modules share."""
    return {
        "url": _option("str", "url", default=DEFAULT_URL),
        "token": _option("str", "token", no_log=True),
        "token_file": _option("path", "token_file", no_log=False),
        "ca": _option("path", "ca"),
        "cert": _option("path", "cert"),
        "key": _option("path", "key", no_log=False),
    }


CONNECTION_EXCLUSIVE = [("token", "token_file")]
CONNECTION_NEEDS = {"key": "cert"}


class ApiError(Exception):
    """An error response of the server, or none at all.

    ``status`` is the HTTP status, 0 without a response. ``error`` is the API's category. ``lost``: the request may have
    arrived. ``temporary``: the same request may succeed later.
    """

    def __init__(self, message, status=0, error="unreachable", lost=False, temporary=False):
        super().__init__(message)
        self.message = message
        self.status = status
        self.error = error
        self.lost = lost
        self.temporary = temporary or status in TEMPORARY

    def as_result(self):
        """Return the error as fields of a module's result."""
        return {"msg": self.message, "error": self.error, "status_code": self.status}


class Api:
    """The API of one server, with one set of credentials."""

    def __init__(self, params):
        """Use the options of a module. Raises ApiError if the url or the token file cannot be used."""
        self._url, self._socket = _base(params["url"])
        self._params = params
        self._headers = {"Accept": "application/json"}
        token = params.get("token") or _token(params.get("token_file"))
        if token:
            self._headers["X-API-Token"] = token

    def get(self, *parts, **query):
        """Return the object at a path. Raises ApiError."""
        return self._repeated("GET", _path(parts, query))

    def put(self, *parts):
        """Send PUT without a body. Raises ApiError."""
        return self._repeated("PUT", _path(parts))

    def delete(self, *parts, **more):
        """Send DELETE once: a repeat would answer that nothing is there. Raises ApiError."""
        return self._once("DELETE", _path(parts), limit=more.get("limit", ANSWER_TIMEOUT))

    def post(self, *parts, **more):
        """Send POST once, with ``body``. Raises ApiError."""
        return self._once("POST", _path(parts), more.get("body"), limit=more.get("limit", ANSWER_TIMEOUT))

    def submit(self, *parts, **more):
        """Send POST with a new idempotency key, so that a repeat makes no second job. Raises ApiError."""
        return self._repeated("POST", _path(parts), more["body"], {"Idempotency-Key": str(uuid.uuid4())})

    def listed(self, key, *parts, **query):
        """Yield the objects of all pages of a list, and fail if a target is missing from it. Raises ApiError."""
        offset = 0
        while True:
            page = self.get(*parts, offset=offset, limit=PAGE, **query)
            for name, reason in (page.get("unavailable") or {}).items():
                raise ApiError("the volumes of target %s cannot be listed: %s" % (name, reason), 503, "unavailable")
            for one in page[key]:
                yield one
            offset += PAGE
            if offset >= page["count"]:
                return

    def _repeated(self, method, path, body=None, headers=None):
        for pause in REPEAT_PAUSES:
            try:
                return self._once(method, path, body, headers)
            except ApiError as error:
                if not error.lost:
                    raise
            time.sleep(pause)
        return self._once(method, path, body, headers)

    def _once(self, method, path, body=None, headers=None, limit=ANSWER_TIMEOUT):
        sent = dict(self._headers, **(headers or {}))
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        try:
            answer = self._open(method, path, data, sent, limit)
            text = answer.read()
        except HTTPError as error:
            raise _refused(self._params["url"], error) from error
        except ssl.SSLError as error:
            raise ApiError("no TLS connection to %s: %s" % (self._params["url"], error)) from error
        except (URLError, OSError, HTTPException, ValueError) as error:
            raise _unreachable(self._params["url"], error) from error
        found = _decoded(text)
        if not isinstance(found, dict):
            raise ApiError("%s does not answer like a libvirt-volume-provisioner" % self._params["url"], answer.code)
        return found

    def _open(self, method, path, data, headers, limit):
        return open_url(
            self._url + path,
            method=method,
            data=data,
            headers=headers,
            timeout=limit,
            use_proxy=not _is_local(self._url),  # a proxy cannot reach this machine's loopback
            use_netrc=False,
            follow_redirects="none",  # the API has none, and following one would leak the token
            client_cert=self._params.get("cert"),
            client_key=self._params.get("key"),
            ca_path=self._params.get("ca"),
            unix_socket=self._socket,
            http_agent="lvp.provisioner (Ansible)",
        )


def _base(url):
    """Return the base url and the path of the unix socket, if it is one."""
    if url.startswith("unix:"):
        path = url[len("unix:") :]
        path = path[2:] if path.startswith("//") else path
        if not path.startswith("/"):
            raise ApiError("url %r must look like unix:/PATH, with an absolute path" % url, error="invalid option")
        return "http://localhost", path
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query
    except ValueError:
        valid = False
    if not valid:
        raise ApiError("url %r must look like https://HOST:8080 or unix:/PATH" % url, error="invalid option")
    url = url.rstrip("/")
    return url[: -len("/api/v1")] if url.endswith("/api/v1") else url, None


def _is_local(url):
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _token(path):
    if path is None:
        return None
    try:
        with open(path) as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ApiError("the token file %s cannot be read: %s" % (path, error), error="invalid option") from error
    if len(token.split()) != 1:
        raise ApiError("the token file %s must contain one token and nothing else" % path, error="invalid option")
    return token


def _path(parts, query=None):
    path = "/api/v1/" + "/".join(quote(part, safe=":") for part in parts)
    return path + "?" + urlencode(query) if query else path


def _decoded(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def _refused(url, error):
    """Return the ApiError of an error response: the server's own words if it is one of ours."""
    try:
        found = _decoded(error.read())
    except (OSError, HTTPException):
        found = None
    if isinstance(found, dict) and found.get("message"):
        return ApiError(str(found["message"]), error.code, str(found.get("error", "")))
    return ApiError("%s answered with HTTP status %s" % (url, error.code), error.code, "unexpected response")


def _unreachable(url, error):
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, ssl.SSLError):
        return ApiError("no TLS connection to %s: %s" % (url, reason))
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return ApiError("the request to %s cannot be made: %s" % (url, error), error="invalid option")
    # A refused connection has sent nothing; with any other error the request may have arrived.
    refused = isinstance(reason, (ConnectionRefusedError, FileNotFoundError)) or "refused" in str(reason)
    return ApiError("no response from %s: %s" % (url, reason), lost=not refused, temporary=True)
