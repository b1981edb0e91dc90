"""A real OCI registry (CNCF Distribution) on loopback, and a client that pushes images to it as ``oras`` does."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from tests.minio.build import REGISTRY, built
from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
FILE = "application/vnd.oci.image.layer.v1.tar"  # the label that oras gives every file
USER, PASSWORD = "lab", "s3cret-word"
# htpasswd -nbB lab s3cret-word
_HTPASSWD = "lab:$2y$05$abcdefghijklmnopqrstuuEpHRRKIlpAGo.iP7Bpa.htQEJMAAnRe\n"


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry. ``host`` is its name in references, such as ``127.0.0.1:5000``; ``folder`` has its data."""

    host: str
    folder: Path
    auth: httpx.BasicAuth | None = None

    def push_blob(self, repository: str, content: bytes, media_type: str = FILE, title: str = "disk.qcow2") -> dict:
        """Store a blob; return its descriptor."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        with httpx.Client(base_url=f"http://{self.host}", auth=self.auth) as client:
            place = client.post(f"/v2/{repository}/blobs/uploads/").raise_for_status().headers["location"]
            client.put(place, params={**httpx.URL(place).params, "digest": digest}, content=content).raise_for_status()
        annotations = {"org.opencontainers.image.title": title}
        return {"mediaType": media_type, "digest": digest, "size": len(content), "annotations": annotations}

    def push_manifest(self, repository: str, tag: str, document: dict) -> dict:
        """Store a manifest under ``tag``; return its descriptor."""
        body = json.dumps(document).encode()
        with httpx.Client(base_url=f"http://{self.host}", auth=self.auth) as client:
            headers = {"Content-Type": document["mediaType"]}
            client.put(f"/v2/{repository}/manifests/{tag}", content=body, headers=headers).raise_for_status()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        return {"mediaType": document["mediaType"], "digest": digest, "size": len(body)}

    def push(self, repository: str, tag: str, *contents: bytes, **described: str) -> dict:
        """Store an artifact with one layer for each of ``contents``; return its descriptor."""
        config = self.push_blob(repository, b"{}", "application/vnd.oci.empty.v1+json")
        layers = [self.push_blob(repository, content, **described) for content in contents]
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        return self.push_manifest(repository, tag, document)


def container_disk(disk: bytes) -> bytes:
    """Return the layer of a containerDisk, as ``ADD --chown=107:107 disk.qcow2 /disk/`` makes it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for info in (tarfile.TarInfo("disk"), tarfile.TarInfo("disk/disk.qcow2")):
            info.uid = info.gid = 107
            if info.name == "disk":
                info.type, info.mode = tarfile.DIRTYPE, 0o555
                tar.addfile(info)
            else:
                info.size, info.mode = len(disk), 0o440
                tar.addfile(info, io.BytesIO(disk))
    return archive.getvalue()


def encoded(login: str) -> str:
    return base64.b64encode(login.encode()).decode()


@contextmanager
def registry(folder: Path, *, login: bool = False) -> Iterator[Registry]:
    """Run a registry until the block ends; with ``login`` it accepts only USER with PASSWORD."""
    (port,) = free_ports(1)
    settings = [
        "version: 0.1",
        "log: {level: warn}",
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}",
        f"http: {{addr: '127.0.0.1:{port}', secret: tests}}",
    ]
    if login:
        (folder / "htpasswd").write_text(_HTPASSWD)
        settings.append(f"auth: {{htpasswd: {{realm: lab, path: {folder / 'htpasswd'}}}}}")
    (folder / "config.yml").write_text("\n".join(settings))
    with (folder / "log").open("wb") as output:
        command = [str(built(*REGISTRY)), "serve", str(folder / "config.yml")]
        process = subprocess.Popen(command, stdout=output, stderr=output, env={"OTEL_TRACES_EXPORTER": "none"})
    try:
        _wait_for(f"http://127.0.0.1:{port}/v2/", process, folder / "log")
        yield Registry(f"127.0.0.1:{port}", folder / "data", httpx.BasicAuth(USER, PASSWORD) if login else None)
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            if httpx.get(url).status_code in {200, 401}:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"the registry does not answer: {log.read_text()[-2000:]}")
