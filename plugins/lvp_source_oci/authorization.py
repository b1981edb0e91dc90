"""Authorizes requests to registries: answers their challenges, with tokens from a token service or with Basic.

The protocol is Docker's token authentication, which the OCI registries share. A header is kept for each repository
until the registry rejects it; tokens live for minutes, and a registry answers 401 when one has expired.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import msgspec
import trio

from lvp_source_oci.auth_file import login_for
from lvp_source_oci.errors import ChallengeError, meaning
from lvp_source_oci.reading import read_document
from lvp_source_oci.reference import DOCKER_HUB, api_host
from provisioner.contracts import HttpTransport, ImageUrl, UrlPrefix, read_secret
from provisioner.contracts.errors import (
    InvalidRequestError,
    ProvisionerError,
    RemoteDeniedError,
    SourceError,
    UrlNotAllowedError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lvp_source_oci.reference import Reference
    from lvp_source_oci.settings import OciSettings

# Token services on other hosts than their registry's.
_TOKEN_SERVICES = {
    DOCKER_HUB: "https://auth.docker.io/token",
    "registry.gitlab.com": "https://gitlab.com/jwt/auth",
}
_MAX_ANSWER = 64 * 1024
# Tokens have one or two KiB, with many permissions more; servers limit headers to 8 to 16 KiB.
_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")
# A client may name any repository, and each one that the registry has gets a header of its own.
_MOST_HEADERS = 1000


class _Answer(msgspec.Struct):
    """A token service's answer; OAuth2 calls it ``access_token``."""

    token: str = ""
    access_token: str = ""


_DECODER = msgspec.json.Decoder(_Answer)


class Authorization:
    """The Authorization headers of one source."""

    def __init__(self, settings: OciSettings, source: str) -> None:
        self._settings = settings
        self._source = source
        self._prefixes = [UrlPrefix.parse(text) for text in settings.token_urls]
        self._headers: dict[tuple[str, str], str] = {}

    def header(self, host: str, repository: str) -> str | None:
        """Return the header for a repository of the registry whose API is at ``host``, None if it is not known yet."""
        return self._headers.get((host, repository))

    async def answer(self, error: ChallengeError, reference: Reference) -> None:
        """Answer a registry's challenge, so that ``header`` returns what it wants. Raises SourceError."""
        login = await trio.to_thread.run_sync(self._login, reference, abandon_on_cancel=True)
        bearer = re.search(r"(?i)(?:^|,\s*)bearer\s+(.*)", error.challenge)
        if bearer is not None:
            header = f"Bearer {await self._token(_parameters(bearer[1]), reference, login)}"
        elif login is not None and re.match(r"(?i)basic\b", error.challenge):
            header = login
        else:
            raise error
        if len(self._headers) >= _MOST_HEADERS:
            self._headers.clear()
        self._headers[self._api(reference).netloc, reference.repository] = header

    def _api(self, reference: Reference) -> ImageUrl:
        return ImageUrl.parse(f"{self._settings.scheme}://{api_host(reference.registry)}")

    def _login(self, reference: Reference) -> str | None:
        """Return the header for Basic authentication, None without a login. Blocking."""
        settings, text = self._settings, None
        if settings.username is not None and settings.password is not None:
            text = f"{settings.username}:{read_secret(settings.password)}"
        elif settings.auth_file is not None:
            text = login_for(reference, settings.auth_file)
        return None if text is None else f"Basic {base64.b64encode(text.encode()).decode()}"

    async def _token(self, challenge: Mapping[str, str], reference: Reference, login: str | None) -> str:
        """Return a token from the service that the challenge names."""
        realm = self._realm(challenge.get("realm", ""), reference)
        query = {"service": challenge["service"]} if "service" in challenge else {}
        query["scope"] = _scope(challenge.get("scope", ""), reference)
        url = f"{realm.origin}{realm.path}?{'&'.join(filter(None, (realm.query, urlencode(query))))}"
        headers = {} if login is None else {"Authorization": login}
        transport = HttpTransport(
            self._settings.options(any_encoding=True),
            lambda target: target.origin == realm.origin,
            lambda _method, _url, given: {**given, **headers},
            self._explain,
        )
        try:
            async with transport.open(url) as stream:
                answer = _DECODER.decode(await read_document(stream, _MAX_ANSWER))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SourceError(f"the token service {realm} sent something that is no token") from error
        finally:
            await transport.aclose()
        token = answer.token or answer.access_token
        if not _TOKEN.fullmatch(token):
            raise SourceError(f"the token service {realm} sent no token")
        return token

    def _realm(self, text: str, reference: Reference) -> ImageUrl:
        """Return the token service's URL. Raises UrlNotAllowedError unless it may be asked."""
        try:
            realm = ImageUrl.parse(text)
        except InvalidRequestError:
            raise UrlNotAllowedError(f"{reference}: the registry names an invalid token service") from None
        known = _TOKEN_SERVICES.get(reference.registry)
        prefixes = [*self._prefixes, *([UrlPrefix.parse(known)] if known else [])]
        if realm.origin != self._api(reference).origin and not any(prefix.covers(realm) for prefix in prefixes):
            raise UrlNotAllowedError(
                f"{reference}: the registry sends its clients to the token service {realm}; to allow that, add it to "
                f"token_urls of source {self._source}"
            )
        return realm

    def _explain(self, status: int, headers: Mapping[str, str], body: bytes, where: str) -> ProvisionerError | None:
        if status in {400, 401, 403}:
            return RemoteDeniedError(
                f"the token service {where} rejects the request (HTTP {status}): check the credentials of source "
                f"{self._source}, and whether the repository exists"
            )
        return meaning(status, headers, body, where, self._source)


def _parameters(text: str) -> Mapping[str, str]:
    """Return the parameters of a challenge, such as ``realm="https://...",service="..."``."""
    return {name.lower(): value for name, value in re.findall(r'(\w+)="([^"]*)"', text)}


def _scope(asked: str, reference: Reference) -> str:
    """Return the scope to ask for: the repository as the registry names it, and never more than to read it."""
    match = re.fullmatch(r"repository:([^\s:]+(?::\d+/[^\s:]+)?):[a-z,*]+", asked)
    return f"repository:{match[1] if match else reference.repository}:pull"
