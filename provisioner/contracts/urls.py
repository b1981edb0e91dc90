"""Strict parsing of image urls, and the url prefixes of sources.

Ambiguous urls, which two programs could parse differently, are rejected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from provisioner.contracts.errors import InvalidRequestError
from provisioner.contracts.redaction import is_version_id

MAX_URL_LENGTH = 4096
DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """A parsed url; it is parsed once, at the edge. Converted to a string, it has no secret query and is safe to show.

    ``host`` is in lower case, an international name in its ASCII form; ``path`` is as given, still percent-encoded, and
    begins with ``/``. ``text`` is the whole url, to send and to store. Two spellings of one url are equal.
    """

    scheme: str
    host: str
    port: int | None
    path: str
    query: str = field(repr=False)
    text: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.text:
            query = f"?{self.query}" if self.query else ""
            object.__setattr__(self, "text", f"{self.origin}{self.path}{query}")

    @classmethod
    def parse(cls, text: str | ImageUrl) -> ImageUrl:
        """Parse scheme://host[:port]/path[?query], or file:///path. Raises InvalidRequestError.

        A parsed url is returned as it is.
        """
        if isinstance(text, ImageUrl):
            return text
        if re.search(r"^\w+://[^/?#]*[^\x00-\x7f]", text):
            text = _with_ascii_host(text)
        if not text or len(text) > MAX_URL_LENGTH or re.search(r"[^\x21-\x7e]|[\\#]", text):
            raise InvalidRequestError(
                "image_url must be 1 to "
                f"{MAX_URL_LENGTH} visible ASCII characters without backslashes and '#' (write others as %XX)"
            )
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise InvalidRequestError(f"image_url is not a url: {error}") from error
        if "@" in parts.netloc:
            raise InvalidRequestError("image_url must not hold a user name or password")
        if parts.scheme.lower() == "file":
            if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
                raise InvalidRequestError("image_url of a file must be file:///path, without a host")
        elif not parts.scheme or not _HOST.fullmatch(re.sub(r":\d*$", "", parts.netloc)):
            raise InvalidRequestError("image_url must be scheme://host/path")
        if any(segment in {".", ".."} for segment in unquote(unquote(parts.path)).split("/")):
            raise InvalidRequestError("image_url must not hold '.' or '..' as a part of its path")
        scheme = parts.scheme.lower()
        host = "" if scheme == "file" else (parts.hostname or "").lower()
        return cls(scheme, host, port or DEFAULT_PORTS.get(scheme), parts.path or "/", parts.query, text)

    @property
    def file_name(self) -> str:
        """Return the decoded last segment of the path; empty if the path ends in a slash."""
        return unquote(self.path.rsplit("/", 1)[-1])

    def with_path(self, path: str, query: str = "") -> ImageUrl:
        """Return the url of another path on the same server, without this one's query. Raises InvalidRequestError."""
        return ImageUrl.parse(f"{self.origin}{path}" + (f"?{query}" if query else ""))

    @property
    def origin(self) -> str:
        """Scheme and host, such as ``https://images.example.com``."""
        return f"{self.scheme}://{self.netloc}"

    @property
    def netloc(self) -> str:
        """Return the host, with the port unless it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port in {None, DEFAULT_PORTS.get(self.scheme)} else f"{host}:{self.port}"

    def __str__(self) -> str:
        """Return the url without a query that may be secret, to show."""
        return self.without_query

    @property
    def without_query(self) -> str:
        """Return the url without its query, which may contain a signature; for logs and names.

        An object's version is not secret, and it is kept: without it the name would mean another image.
        """
        return f"{self.origin}{self.path}" + (f"?{self.query}" if is_version_id(self.query) else "")

    @property
    def has_secret(self) -> bool:
        """Whether the query may be a signature or a token."""
        return bool(self.query) and not is_version_id(self.query)


def _with_ascii_host(text: str) -> str:
    """Return a url with an international host name in the form that is looked up; unchanged if there is none."""
    scheme, _, rest = text.partition("://")
    host = re.match(r"[^/?#:@]*", rest)
    assert host is not None  # it may be empty
    try:
        ascii_host = host[0].encode("idna").decode("ascii")
    except UnicodeError:
        return text
    # Some characters stand for several ones, such as for dots or a slash.
    is_name = re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", ascii_host)
    return f"{scheme}://{ascii_host}{rest[host.end() :]}" if is_name else text


def shown(url: str | ImageUrl) -> str:
    """Return ``url`` without query and login, for messages; "the url" if it cannot be parsed."""
    try:
        return str(ImageUrl.parse(url))
    except InvalidRequestError:
        return "the url"


@dataclass(frozen=True, slots=True)
class UrlPrefix:
    """A url prefix of a source, such as ``https://images.example.com/pub/``.

    The host may begin with ``*.`` (any subdomain) and the port may be ``*``. The path is compared by whole segments:
    ``/pub`` covers ``/pub`` and ``/pub/x`` but not ``/public``.
    """

    scheme: str
    host: str
    port: int | None  # None: any
    path: str

    @classmethod
    def parse(cls, text: str) -> UrlPrefix:
        """Parse a prefix. Raises InvalidRequestError."""
        any_port = re.match(r"^\w+://[^/]*:\*(?=/|$)", text) is not None
        plain = re.sub(r":\*(?=/|$)", "", text, count=1) if any_port else text
        wildcard = "://*." in plain
        url = ImageUrl.parse(plain.replace("://*.", "://", 1))
        return cls(
            url.scheme, ("*." if wildcard else "") + url.host, None if any_port else url.port, url.path.rstrip("/")
        )

    def covers(self, url: ImageUrl) -> bool:
        """Return whether ``url`` is under this prefix."""
        if url.scheme != self.scheme or (self.port is not None and url.port != self.port):
            return False
        if self.host.startswith("*."):
            if not url.host.endswith(self.host[1:]) or _is_address(url.host):
                return False
        elif url.host != self.host:
            return False
        return not self.path or url.path == self.path or url.path.startswith(self.path + "/")


def _is_address(host: str) -> bool:
    """Return whether ``host`` is an IP address, which no wildcard covers."""
    return ":" in host or host.rpartition(".")[2].isdigit()
