"""A real daemon with mutual TLS, file volumes and images of its own, for clients that were generated from api.yaml."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key, pkcs12
from cryptography.x509 import load_pem_x509_certificate

from contrib.clients.later import later_version
from tests.end_to_end.daemon import LVP, Daemon, plain_config
from tests.servers.images import image_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Above 2 GiB, so that a client that reads a size into 32 bits fails.
SIZE_GB = 3
SIZE = SIZE_GB * 2**30
# Java reads keys from a PKCS #12 file, which needs a password.
STORE_PASSWORD = "lvp"
# With a certificate, with a token, and with a token against a service whose responses have new fields.
WAYS = ("certificate", "token", "later")
_SENT_OF_HELD = 256 * 1024


@dataclass(frozen=True)
class Service:
    """A running daemon, and what its clients need to know."""

    daemon: Daemon
    image_url: str
    held_url: str  # the download of this image never ends
    checksum: str
    pki: Path
    later_url: str

    def settings(self, way: str, volume: str) -> dict[str, str]:
        """Return the variables of one client's run, which is one of ``WAYS``."""
        found = {
            "LVP_URL": self.later_url if way == "later" else self.daemon.url,
            "LVP_CA": str(self.pki / "ca.pem"),
            "LVP_IMAGE_URL": self.image_url,
            "LVP_HELD_URL": self.held_url,
            "LVP_CHECKSUM": self.checksum,
            "LVP_VOLUME": volume,
        }
        if way != "certificate":
            return found | {"LVP_TOKEN": self.daemon.token, "LVP_PRINCIPAL": "token:client"}
        return found | {
            "LVP_CERTIFICATE": str(self.pki / "clients" / "generated.pem"),
            "LVP_KEY": str(self.pki / "clients" / "generated.key"),
            "LVP_KEY_STORE": str(self.pki / "clients" / "generated.p12"),
            "LVP_KEY_STORE_PASSWORD": STORE_PASSWORD,
            "LVP_PRINCIPAL": "certificate:generated",
        }

    def check(self, volume: str) -> None:
        """Check on disk that the client's volume is there, and that its cancelled job left nothing."""
        found = {path.name for path in self.daemon.volumes.iterdir() if path.name.startswith(volume)}
        assert found == {f"{volume}.raw"}, found
        assert self.daemon.volume(volume).stat().st_size == SIZE


@contextmanager
def running(folder: Path) -> Iterator[Service]:
    """Run a daemon in ``folder`` until the block ends."""
    images = folder / "images"
    images.mkdir(parents=True)
    checksum = _make_images(images)
    tables = _make_pki(folder / "pki")
    with image_server(images) as server:
        server.held["held.raw"] = _SENT_OF_HELD
        tables["server"]["bind"] = ["127.0.0.1:0"]
        daemon = Daemon(folder / "daemon", plain_config(folder / "daemon", **tables))
        try:
            daemon.start()
            with later_version(daemon.url, folder / "pki" / "ca.pem") as later_url:
                disk, held = server.of("disk.qcow2"), server.of("held.raw")
                yield Service(daemon, disk, held, checksum, folder / "pki", later_url)
            assert daemon.stop() == 0
            assert "Traceback" not in daemon.log_file.read_text()
        finally:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill()


def _make_images(folder: Path) -> str:
    """Make an empty disk of 3 GiB, and an image to hold back; return the digest of the first."""
    disk, held = folder / "disk.qcow2", folder / "held.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, f"{SIZE_GB}G"], check=True)
    held.write_bytes(os.urandom(4 * _SENT_OF_HELD))
    for file in (disk, held):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        file.with_name(f"{file.name}.sha256").write_text(f"{digest}  {file.name}\n")
    return hashlib.sha256(disk.read_bytes()).hexdigest()


def _make_pki(folder: Path) -> dict[str, dict[str, object]]:
    """Make a CA with a certificate for the server and one for the clients; return the configuration that names them."""

    def lvp(*words: str) -> str:
        command = [*LVP, "pki", *words, "--dir", str(folder)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    lvp("init")
    tables = tomllib.loads(lvp("server", "127.0.0.1", "localhost"))
    lines = lvp("client", "generated", "--role", "operator")
    # The lines for the server end where those for the client begin.
    tables |= tomllib.loads(re.split("^# On the client", lines, flags=re.MULTILINE)[0])
    _make_key_store(folder / "clients" / "generated.pem")
    return tables


def _make_key_store(certificate: Path) -> None:
    key = load_pem_private_key(certificate.with_suffix(".key").read_bytes(), None)
    chain = load_pem_x509_certificate(certificate.read_bytes())
    content = pkcs12.serialize_key_and_certificates(
        b"generated", key, chain, None, BestAvailableEncryption(STORE_PASSWORD.encode())
    )
    certificate.with_suffix(".p12").write_bytes(content)
