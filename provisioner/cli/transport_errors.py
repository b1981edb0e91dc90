"""Why a request got no usable response, in one sentence that says what to do.

Turns exceptions of the standard library, certificate checks and TLS alerts into UnreachableError. ``transport`` raises
them; here nothing is sent.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from provisioner.cli.exit_status import CliError, ExitStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from provisioner.cli.client_settings import ClientSettings

# Seconds; a connection is made quickly or not at all.
CONNECT_TIMEOUT = 5.0

URL_SETTINGS = "--url, LVP_URL or url in lvp.toml"
CA_SETTINGS = "--ca, LVP_CA or ca in lvp.toml"
CERT_SETTINGS = "--cert, LVP_CERT or cert in lvp.toml"
_ANOTHER = f"name another with {CERT_SETTINGS}"

# OpenSSL's numbers for the result of a certificate check (X509_V_ERR_...).
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_CA = {2, 18, 19, 20, 21}  # no issuer found, or one that is not trusted
_WRONG_NAME = {62, 63, 64}
# OpenSSL's names for bytes that are not TLS, which vary between its versions.
_NOT_TLS = {
    "WRONG_VERSION_NUMBER",
    "UNKNOWN_PROTOCOL",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
    "HTTP_REQUEST",
}
# How OpenSSL reports a closed connection, depending on when it notices.
_CLOSED = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
_ALERT = re.compile(r"(?:SSL|TLS)(?:V\d+)?_ALERT_(\w+)")
# Alert -> what the server says of the client certificate.
_REFUSED = {
    "CERTIFICATE_REVOKED": "it is revoked",
    "UNKNOWN_CA": "the server does not trust its CA (client_ca in the server's configuration)",
    "BAD_CERTIFICATE": "the server cannot accept it, for example because it is not valid yet",
    "UNSUPPORTED_CERTIFICATE": "it is not made for clients",
    "CERTIFICATE_UNKNOWN": "the server cannot accept it",
    "DECRYPT_ERROR": "its signature is wrong",
}
# How a TLS server without a word for it answers plain HTTP: an alert.
_TLS_ALERT = "\x15\x03"


class UnreachableError(CliError):
    """No response: the cause, and a hint what to do.

    ``lost``: the request may have arrived. ``temporary``: a retry may succeed.
    """

    def __init__(self, cause: str, hint: str = "", *, lost: bool = False, temporary: bool = True) -> None:
        super().__init__(f"{cause}; {hint}" if hint else cause, ExitStatus.UNREACHABLE)
        self.cause = cause
        self.lost = lost
        self.temporary = temporary


@contextmanager
def transport_errors(settings: ClientSettings) -> Iterator[None]:
    """Turn exceptions of the standard library into CliError."""
    url = settings.url
    try:
        yield
    except URLError as error:  # while connecting or sending
        raise _connecting(settings, error.reason) from error
    except TimeoutError as error:
        raise UnreachableError(f"{url} did not answer the request in time", lost=True) from error
    except http.client.BadStatusLine as error:
        if str(error).startswith(_TLS_ALERT):
            raise speaks_https(url) from error
        raise UnreachableError(f"the connection to {url} broke: {_reason(error)}", lost=True) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, ssl.SSLError) and not isinstance(error, _CLOSED):
            raise _tls(settings, error) from error
        raise UnreachableError(f"the connection to {url} broke: {_reason(error)}", lost=True) from error
    except ValueError as error:  # an invalid header or host name
        raise CliError(f"the request to {url} cannot be made: {error}", ExitStatus.USAGE) from error


def speaks_https(url: str) -> UnreachableError:
    """Return the error for an address with http:// whose server speaks https."""
    better = f"https://{url.removeprefix('http://')}"
    return UnreachableError(f"{url} speaks https", f"use {better} in {URL_SETTINGS}", temporary=False)


def _connecting(settings: ClientSettings, reason: str | BaseException) -> UnreachableError:
    url = settings.url
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UnreachableError(*_untrusted(settings, reason), temporary=False)
    if isinstance(reason, _CLOSED):
        words = f"{url} closed the connection during the TLS handshake"
        return UnreachableError(words, "check that this port speaks https")
    if isinstance(reason, ssl.SSLError):
        return _tls(settings, reason)
    if proxy := _proxy(settings):
        variable = f"{urlsplit(url).scheme.upper()}_PROXY"
        words = f"{url} cannot be reached through the proxy {proxy}: {_reason(reason)}"
        return UnreachableError(words, f"correct {variable}, or name the server in NO_PROXY", lost=_is_lost(reason))
    if isinstance(reason, TimeoutError):
        words = f"{url} did not answer within {CONNECT_TIMEOUT:g} s"
        return UnreachableError(words, f"check the firewall, or correct {URL_SETTINGS}")
    if isinstance(reason, PermissionError) and url.startswith("unix:"):
        return UnreachableError(
            f"this user may not connect to {url}", "run lvp as root or in the group of the socket", temporary=False
        )
    if isinstance(reason, ConnectionRefusedError | FileNotFoundError):
        return UnreachableError(f"nothing listens at {url}", f"start the server, or correct {URL_SETTINGS}")
    if isinstance(reason, socket.gaierror):
        return _unknown_name(url, reason)
    return UnreachableError(f"{url} cannot be reached: {_reason(reason)}", lost=_is_lost(reason))


def _unknown_name(url: str, error: socket.gaierror) -> UnreachableError:
    host = urlsplit(url).hostname
    if error.errno == socket.EAI_AGAIN:
        return UnreachableError(f"the name {host} cannot be looked up: no DNS server answers", "try again later")
    return UnreachableError(f"the name {host} is unknown", f"correct {URL_SETTINGS}")


def _untrusted(settings: ClientSettings, error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    """Return what is wrong with the server's certificate, and what to do."""
    it = f"the certificate of {settings.url}"
    if error.verify_code == _EXPIRED:
        return f"{it} has expired", "renew it on the server, or correct this machine's clock"
    if error.verify_code == _NOT_YET_VALID:
        return f"{it} is not valid yet", "correct the clock of this machine or of the server"
    if error.verify_code in _WRONG_NAME:
        host = urlsplit(settings.url).hostname
        return f"{it} is not for the name {host}", f"use one of its names in {URL_SETTINGS}, or renew it with this name"
    if error.verify_code not in _UNKNOWN_CA:
        return f"{it} is not trusted: {error.verify_message}", f"renew it, or name its CA with {CA_SETTINGS}"
    if settings.ca is not None:
        return f"{it} is not trusted: the CA in {settings.ca} has not signed it", f"name its CA with {CA_SETTINGS}"
    return f"{it} is not trusted: its CA is unknown", f"name its CA with {CA_SETTINGS}"


def _tls(settings: ClientSettings, error: ssl.SSLError) -> UnreachableError:
    """Return the error for a failed handshake; with TLS 1.3 an alert may come after it, in place of the response."""
    url, reason = settings.url, error.reason or str(error)
    if reason in _NOT_TLS:
        hint = f"correct the port, or use http:// in {URL_SETTINGS}"
        return UnreachableError(f"{url} does not speak TLS", hint, temporary=False)
    found = _ALERT.fullmatch(reason)
    alert = found[1] if found else ""
    if settings.cert is not None and (alert == "CERTIFICATE_EXPIRED" or alert in _REFUSED):
        why, hint = _expired(settings.cert) if alert == "CERTIFICATE_EXPIRED" else (_REFUSED[alert], _ANOTHER)
        words = f"{url} refused the client certificate {settings.cert}: {why}"
    elif settings.cert is None and alert in {"CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE"}:
        words = f"{url} refused the connection: it needs a client certificate"
        hint = f"name one with {CERT_SETTINGS}"
    elif alert == "PROTOCOL_VERSION":
        words = f"{url} accepts no TLS version of this machine"
        hint = "update OpenSSL here, or lower tls_minimum on the server"
    else:
        words = f"no TLS connection to {url}: {(alert or reason).replace('_', ' ').lower()}"
        hint = "see the server's log"
    return UnreachableError(words, hint, temporary=False)


def _expired(cert: Path) -> tuple[str, str]:
    """Return what is wrong with a client certificate that the server calls expired, and what to do."""
    import time

    from provisioner.contracts.small_file import read_small
    from provisioner.tls.certificates import certificates

    try:
        end = certificates(read_small(cert))[0].not_after
    except (OSError, ValueError):
        end = 0.0
    if end > time.time():
        return "it is expired there, but not here", "check the server's clock and its revocation list (client_crl)"
    return "it has expired", _ANOTHER


def _proxy(settings: ClientSettings) -> str | None:
    """Return the proxy for the server without its password, if the environment names one."""
    parts = urlsplit(settings.url)
    proxy = getproxies().get(parts.scheme)
    if settings.loopback or proxy is None or proxy_bypass(parts.netloc):
        return None
    return proxy.rpartition("@")[2].rpartition("//")[2]


def _is_lost(reason: str | BaseException) -> bool:
    return isinstance(reason, BrokenPipeError | ConnectionResetError)


def _reason(error: str | BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
