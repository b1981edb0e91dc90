"""Where a source's keys come from: its settings' references, or the places the MinIO SDK knows.

Owns the order, and that no key and no token ever reaches a message. What blocks here runs in worker threads.
"""

from __future__ import annotations

import configparser
import threading
from typing import TYPE_CHECKING

import urllib3
from minio.credentials.credentials import Credentials
from minio.credentials.providers import (
    AWSConfigProvider,
    EnvAWSProvider,
    EnvMinioProvider,
    IamAwsProvider,
    Provider,
)

from provisioner.contracts import read_secret
from provisioner.contracts.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lvp_source_s3.settings import S3Settings

# The machine's metadata answers at once or is not there at all.
_METADATA_TIMEOUT = urllib3.Timeout(connect=2, read=5)
_UNUSABLE = (ValueError, KeyError, OSError, configparser.Error, urllib3.exceptions.HTTPError)


class Keys:
    """The credentials of one source. Looked up for every request: a renewed key or an expired token counts at once."""

    def __init__(self, settings: S3Settings, source: str) -> None:
        self._settings = settings
        self._source = source
        self._lock = threading.Lock()
        self._providers: Sequence[tuple[str, Provider]] | None = None

    @property
    def anonymous(self) -> bool:
        return self._settings.credentials == "anonymous"

    def get(self) -> Credentials | None:
        """The credentials, None for an anonymous source. Blocking. Raises SourceError."""
        if self.anonymous:
            return None
        if self._settings.access_key is not None and self._settings.secret_key is not None:
            token = self._settings.session_token
            return Credentials(
                read_secret(self._settings.access_key),
                read_secret(self._settings.secret_key),
                read_secret(token) if token is not None else None,
            )
        with self._lock:
            return self._first()

    def _first(self) -> Credentials:
        if self._providers is None:
            self._providers = _providers(self._settings)
        for _, provider in self._providers:
            try:
                return provider.retrieve()
            except _UNUSABLE:
                continue
        places = ", ".join(name for name, _ in self._providers)
        # The causes are left out: some of the SDK's messages hold the token they were about.
        raise SourceError(f"no usable credentials for source {self._source} (looked in: {places})") from None


def _providers(settings: S3Settings) -> Sequence[tuple[str, Provider]]:
    kind = settings.credentials
    found: list[tuple[str, Provider]] = []
    if kind in {"chain", "environment"}:
        amazon, minio = ("AWS_* variables", EnvAWSProvider()), ("MINIO_* variables", EnvMinioProvider())
        # A key for one of them must not be offered to the other first.
        found += [amazon, minio] if settings.endpoint is None else [minio, amazon]
    if kind in {"chain", "file"}:
        name = settings.credentials_file or "shared credentials file"
        found.append((name, AWSConfigProvider(settings.credentials_file, settings.profile)))
    # Amazon's machine roles mean nothing to another service, and asking costs seconds where there is nobody.
    if kind == "instance" or (kind == "chain" and settings.endpoint is None):
        retry = urllib3.Retry(total=1, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504])
        client = urllib3.PoolManager(timeout=_METADATA_TIMEOUT, retries=retry)
        found.append(("role of the instance", IamAwsProvider(http_client=client, region=settings.region)))
    return found
