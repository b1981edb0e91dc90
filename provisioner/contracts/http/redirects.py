"""Redirects: followed a few times, and only to urls that the source allows."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urldefrag, urljoin

import httpx

from provisioner.contracts.errors import InvalidRequestError, SourceError, UrlNotAllowedError
from provisioner.contracts.urls import ImageUrl, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAX_REDIRECTS = 5
_STATUS = frozenset({301, 302, 303, 307, 308})
_ALLOW_REDIRECT = "to allow it, add that server to redirect_urls of the source"


async def follow(
    url: ImageUrl, allows: Callable[[ImageUrl], bool], request: Callable[[ImageUrl], Awaitable[httpx.Response | str]]
) -> httpx.Response:
    """Return the first response that is no redirect. ``request`` returns it, or the url that it redirects to.

    Raises UrlNotAllowedError before anything is sent to a url that ``allows`` refuses.
    """
    target = url
    for _ in range(MAX_REDIRECTS + 1):
        if not allows(target):
            raise UrlNotAllowedError(
                f"{shown(target)} belongs to no configured source"
                + ("" if target == url else f"; {shown(url)} redirects there: {_ALLOW_REDIRECT}")
            )
        reply = await request(target)
        if isinstance(reply, httpx.Response):
            return reply
        target = parsed(reply, f" ({shown(url)} redirects there)")
    raise SourceError(f"{shown(url)} redirects more than {MAX_REDIRECTS} times; give the url that it leads to")


def redirect_of(response: httpx.Response, url: ImageUrl) -> str | None:
    """Return the url that the response to ``url`` redirects to, None if it is no redirect. Raises SourceError."""
    location: str | None = response.headers.get("location")
    if response.status_code not in _STATUS or not location:
        return None
    try:
        return urldefrag(urljoin(url.text, location)).url
    except ValueError:  # its text contains the location, which may contain a signature
        raise SourceError(f"{shown(url)} redirects to an invalid url") from None


def parsed(url: ImageUrl | str, how: str = "") -> ImageUrl:
    """Return the url to go to. Raises UrlNotAllowedError if it is invalid, and so not one of the source's."""
    try:
        return ImageUrl.parse(url)
    except InvalidRequestError:  # its text may show the url, and with it a signature
        raise UrlNotAllowedError(f"the url belongs to no configured source{how}") from None
