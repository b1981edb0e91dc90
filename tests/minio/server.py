"""Starts and stops object stores on loopback, with TLS, random keys and their own folder."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import trustme
import urllib3
from minio import Minio, MinioAdmin
from minio.credentials import StaticProvider
from minio.error import S3Error

from tests.minio.build import MINIO, VERSITY, built
from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Store:
    """A running object store; ``access_key`` and ``secret_key`` belong to its owner."""

    host: str
    ca_file: Path
    access_key: str
    secret_key: str
    log: Path
    pid: int

    @property
    def url(self) -> str:
        return f"https://{self.host}"

    def client(self) -> Minio:
        """Return a client of the MinIO SDK with the owner's keys."""
        http = urllib3.PoolManager(ca_certs=str(self.ca_file), retries=False)
        return Minio(self.host, self.access_key, self.secret_key, region="us-east-1", http_client=http)

    def admin(self) -> MinioAdmin:
        http = urllib3.PoolManager(ca_certs=str(self.ca_file), retries=False)
        owner = StaticProvider(self.access_key, self.secret_key)
        return MinioAdmin(endpoint=self.host, credentials=owner, region="us-east-1", http_client=http)

    def put(self, bucket: str, key: str, content: bytes, **metadata: str) -> str:
        """Store an object; return its ETag."""
        result = self.client().put_object(bucket, key, BytesIO(content), len(content), metadata=dict(metadata))
        return f'"{result.etag}"'


@contextmanager
def minio(folder: Path) -> Iterator[Store]:
    """Run a MinIO server until the block ends."""
    access, secret, (port,) = _key(), _key(), free_ports(1)
    ca_file = _certificates(folder)
    command = [
        *(str(built(*MINIO)), "server", "--quiet", "--address", f"127.0.0.1:{port}"),
        *("--certs-dir", str(folder / "certs"), str(folder / "data")),
    ]
    settings = {"MINIO_ROOT_USER": access, "MINIO_ROOT_PASSWORD": secret, "MINIO_BROWSER": "off", "MINIO_UPDATE": "off"}
    with _running(command, settings, folder / "log") as process:
        store = Store(f"127.0.0.1:{port}", ca_file, access, secret, folder / "log", process.pid)
        _wait_for(f"{store.url}/minio/health/ready", store, process)
        _wait_for_buckets(store)
        yield store


@contextmanager
def versity(folder: Path, virtual_domain: str) -> Iterator[Store]:
    """Run a Versity gateway over a folder; buckets are also reachable as host names below ``virtual_domain``."""
    access, secret, (port,) = _key(), _key(), free_ports(1)
    ca_file = _certificates(folder, virtual_domain, f"*.{virtual_domain}")
    (folder / "data").mkdir()
    command = [
        *(str(built(*VERSITY)), "--quiet", "--port", f"127.0.0.1:{port}", "--health", "/health"),
        *("--cert", str(folder / "certs/public.crt"), "--key", str(folder / "certs/private.key")),
        *("--virtual-domain", f"{virtual_domain}:{port}", "posix", "--sidecar", str(folder / "sidecar")),
        str(folder / "data"),
    ]
    (folder / "sidecar").mkdir()
    settings = {"ROOT_ACCESS_KEY": access, "ROOT_SECRET_KEY": secret}
    with _running(command, settings, folder / "log") as process:
        store = Store(f"127.0.0.1:{port}", ca_file, access, secret, folder / "log", process.pid)
        _wait_for(f"{store.url}/health", store, process)
        yield store


def _key() -> str:
    return secrets.token_hex(16)


def _certificates(folder: Path, *names: str) -> Path:
    certificates = folder / "certs"
    certificates.mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost", *names)
    (certificates / "public.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(certificates / "private.key")
    ca_file = folder / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    return ca_file


START_LIMIT = 180  # seconds, on a busy machine


@contextmanager
def _running(command: list[str], settings: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(log.parent), **settings}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=log.parent)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, store: Store, process: subprocess.Popen[bytes]) -> None:
    http = urllib3.PoolManager(ca_certs=str(store.ca_file), retries=False, timeout=10)
    stop = time.monotonic() + START_LIMIT
    while time.monotonic() < stop:
        if process.poll() is not None:
            break
        try:
            if http.request("GET", url).status == 200:
                return
        except urllib3.exceptions.HTTPError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} does not answer: {store.log.read_text()[-2000:]}")


def _wait_for_buckets(store: Store) -> None:
    """Wait until MinIO accepts buckets, which is a moment after it reports that it is ready."""
    for _ in range(100):
        try:
            store.client().make_bucket("first")
        except S3Error as error:
            if error.code != "XMinioServerNotInitialized":
                raise
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"MinIO does not accept buckets: {store.log.read_text()[-2000:]}")
