"""Looks up a source's credentials: secret references in its settings, or the MinIO SDK's providers.

Defines the lookup order and keeps keys and tokens out of messages. Blocking; run it in worker threads.
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

# The instance metadata service either answers at once or does not exist.
_METADATA_TIMEOUT = urllib3.Timeout(connect=2, read=5)
_UNUSABLE = (ValueError, KeyError, OSError, configparser.Error, urllib3.exceptions.HTTPError)


class Keys:
    """The credentials of one source, looked up for every request so that renewed keys take effect at once."""

    def __init__(self, settings: S3Settings, source: str) -> None:
        self._settings = settings
        self._source = source
        self._lock = threading.Lock()
        self._providers: Sequence[tuple[str, Provider]] | None = None

    @property
    def anonymous(self) -> bool:
        return self._settings.credentials == "anonymous"

    def get(self) -> Credentials | None:
        """Return the credentials, or None for an anonymous source. Blocking. Raises SourceError."""
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
        # Omit the causes: some messages of the SDK contain the token.
        raise SourceError(f"no usable credentials for source {self._source} (tried: {places})") from None


def _providers(settings: S3Settings) -> Sequence[tuple[str, Provider]]:
    kind = settings.credentials
    found: list[tuple[str, Provider]] = []
    if kind in {"chain", "environment"}:
        amazon, minio = ("AWS_* variables", EnvAWSProvider()), ("MINIO_* variables", EnvMinioProvider())
        # Try the service's own variables first, so that one service is not sent the other's key.
        found += [amazon, minio] if settings.endpoint is None else [minio, amazon]
    if kind in {"chain", "file"}:
        name = settings.credentials_file or "shared credentials file"
        found.append((name, AWSConfigProvider(settings.credentials_file, settings.profile)))
    # Only Amazon accepts instance roles, and the lookup takes seconds without a metadata service.
    if kind == "instance" or (kind == "chain" and settings.endpoint is None):
        retry = urllib3.Retry(total=1, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504])
        client = urllib3.PoolManager(timeout=_METADATA_TIMEOUT, retries=retry)
        found.append(("role of the instance", IamAwsProvider(http_client=client, region=settings.region)))
    return found
