"""The host that the package is installed on, with an operator's and a client's view of it."""

from __future__ import annotations

import re
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    import trustme

    from tests.guest.harness import Container, Guest
    from tests.packaging.building import Packages

MIB = 1024**2
IMAGE_SIZE = 16 * MIB
NAME = "libvirt-volume-provisioner"
SERVICE = f"{NAME}.service"
SOCKET = f"{NAME}.socket"
STATE = f"/var/lib/{NAME}"

CONFIG = """
[server]
tls_certificate = "/etc/libvirt-volume-provisioner/server.pem"
tls_key = "/etc/libvirt-volume-provisioner/server.key"
client_ca = "/etc/libvirt-volume-provisioner/clients-ca.pem"
client_certificate = "required"
[auth]
certificate_roles = { "operator.example.org" = "operator", "viewer.example.org" = "viewer" }
[jobs]
shutdown_grace = "1s"
[converters.qcow2]
plugin = "qemu-img"
sandbox = "required"
[sources.images]
plugin = "http"
urls = ["http://127.0.0.1:9000/open/"]
allow_addresses = ["127.0.0.0/8"]
[sources.bucket]
plugin = "minio"
endpoint = "http://127.0.0.1:9000"
buckets = ["bucket"]
region = "us-east-1"
allow_addresses = ["127.0.0.0/8"]
access_key = "credential:bucket-access-key"
secret_key = "credential:bucket-secret-key"
[observers.ledger]
plugin = "ledger"
file = "/var/lib/libvirt-volume-provisioner/ledger.jsonl"
"""

SECRETS = """
[Service]
LoadCredential=bucket-access-key:/etc/libvirt-volume-provisioner/secrets/access-key
LoadCredential=bucket-secret-key:/etc/libvirt-volume-provisioner/secrets/secret-key
"""

LISTEN = """
[Socket]
ListenStream=
ListenStream=0.0.0.0:8080
"""

# Each interrupted job needs its own image: a known image would be cloned at once.
MORE_IMAGES = """
cd /srv/images
for name in db-01 db-02 db-03 db-04 db-05 db-06 secret; do { echo $name; cat web.raw; } | head -c 16M > $name.raw; done
for image in *.raw; do sha256sum $image > $image.sha256; done
"""

# Serves images. While the file /srv/hold exists, a transfer pauses after the first half. Requests below /bucket/ need a
# valid S3 signature (AWS Signature Version 4) with the secret "s3cret".
IMAGE_SERVER = """
import hashlib, hmac, http.server, os, time
HALF = 8 << 20

def signature(method, path, headers, authorization):
    fields = dict(part.strip().split("=", 1) for part in authorization.partition(" ")[2].split(","))
    _, *scope = fields["Credential"].split("/")
    names = fields["SignedHeaders"].split(";")
    canonical = [method, *path.partition("?")[::2], *(f"{name}:{headers[name].strip()}" for name in names), "",
                 ";".join(names), headers["x-amz-content-sha256"]]
    digest = hashlib.sha256("\\n".join(canonical).encode()).hexdigest()
    key = b"AWS4s3cret"
    for word in scope:
        key = hmac.digest(key, word.encode(), "sha256")
    words = ["AWS4-HMAC-SHA256", headers["x-amz-date"], "/".join(scope), digest]
    return hmac.digest(key, "\\n".join(words).encode(), "sha256").hex()

class Images(http.server.SimpleHTTPRequestHandler):
    def send_head(self):
        folder, _, name = self.path.lstrip("/").partition("/")
        if folder == "bucket":
            given = self.headers.get("Authorization", "")
            if not given or not given.endswith("=" + signature(self.command, self.path, self.headers, given)):
                return self.send_error(403)
        self.path = "/" + name
        return super().send_head()

    def copyfile(self, source, out):
        sent = 0
        while piece := source.read(1 << 20):
            while sent >= HALF and os.path.exists("/srv/hold"):
                time.sleep(0.1)
            out.write(piece)
            sent += len(piece)

os.chdir("/srv/images")
http.server.ThreadingHTTPServer(("127.0.0.1", 9000), Images).serve_forever()
"""


@dataclass(frozen=True)
class Storage:
    """The host's storage for volumes: how to create it, its targets, and its libvirt pool.

    ``shown`` is the target whose volumes the pool shows: libvirt ignores thin volumes.
    """

    make: str
    target: str
    pool: str
    folder: str
    suffix: str = ""
    shown: str = "main"


THIN = Storage(
    make="vgcreate -y vg0 /dev/disk/by-id/virtio-thin; lvcreate -y -L 4G -T vg0/thin",
    target='[targets.main]\nplugin = "thin-lvm"\ndefault = true\nvolume_group = "vg0"\npool = "thin"\n'
    '[targets.plain]\nplugin = "lvm"\nvolume_group = "vg0"\n',
    pool="logical --source-name vg0 --target /dev/vg0",
    folder="/dev/vg0",
    shown="plain",
)
FILES = Storage(
    make="mkdir -m 711 /var/lib/libvirt/images/vg0",
    target='[targets.main]\nplugin = "file"\ndirectory = "/var/lib/libvirt/images/vg0"\novercommit = true\n',
    pool="dir --target /var/lib/libvirt/images/vg0",
    folder="/var/lib/libvirt/images/vg0",
    suffix=".raw",
)


@dataclass
class Host:
    """The guest or container, and the client's side of the API over its forwarded port."""

    guest: Guest | Container
    authority: trustme.CA
    storage: Storage
    packages: dict[str, Packages]

    def systemctl(self, *words: str) -> str:
        return self.guest.sh(" ".join(["systemctl", *words]), silence=400)

    def state(self, unit: str = SERVICE) -> str:
        return self.guest.run(["systemctl", "is-active", unit]).output.strip()

    def configure(self) -> None:
        """Configure the service, as an operator does after the installation."""
        self.guest.sh(
            f"cp /root/config.toml /root/tls/* /etc/{NAME}/; cd /etc/systemd/system; mkdir -p {SOCKET}.d {SERVICE}.d;"
            f"cp /root/secrets.conf {SERVICE}.d/; cp /root/listen.conf {SOCKET}.d/; systemctl daemon-reload; umask 077;"
            f"cd /etc/{NAME}/secrets; echo key-id > access-key; echo s3cret > secret-key;"
            "openssl rand -hex 32 > token-key; cp /root/tls/server.key tls-key"
        )

    def nice(self) -> tuple[int, set[int]]:
        """Return the nice value of the service's main thread, and those of its other threads."""
        pid = self.pid()
        threads = self.guest.sh(f"cat /proc/{pid}/task/*/stat").splitlines()
        nice = {int(line.split()[0]): int(line.rpartition(")")[2].split()[16]) for line in threads}
        return nice.pop(pid), set(nice.values())

    def status_text(self) -> str:
        return self.systemctl("show", "-P", "StatusText", SERVICE).strip()

    def pid(self) -> int:
        return int(self.systemctl("show", "-P", "MainPID", SERVICE))

    def journal(self) -> str:
        return self.guest.sh(f"journalctl --no-pager -o cat -u {SERVICE}")

    def apt(self, *words: str) -> str:
        command = f"DEBIAN_FRONTEND=noninteractive apt-get -y -qq {' '.join(words)}"
        return self.guest.sh(command, silence=900)

    def altered(self) -> list[str]:
        """Return the package's files that were changed; ignore documentation, which the guest's dpkg leaves out."""
        lines = self.guest.sh(f"dpkg --verify {NAME}").splitlines()
        return [line for line in lines if not re.search(r"missing +/usr/share/(doc|man)", line)]

    def context(self, who: str | None) -> ssl.SSLContext:
        """Return a client's TLS context, with a certificate for ``who`` unless it is None."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if who is not None:
            self.authority.issue_cert(who, common_name=who).configure_cert(context)
        return context

    def call(
        self, method: str, path: str, body: object = None, *, who: str | None = "operator.example.org", token: str = ""
    ) -> Any:
        """Send a request from outside; raise httpx.HTTPStatusError on 4xx and 5xx."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"https://127.0.0.1:{self.guest.port(8080)}{path}"
        with httpx.Client(verify=self.context(who), trust_env=False, timeout=120) as client:
            answer = client.request(method, url, json=body, headers=headers).raise_for_status()
            return answer.json() if answer.content else None

    def submit(
        self, volume: str, image: str = "web", folder: str = "open", target: str = "main", image_type: str = "raw"
    ) -> str:
        body = {
            "target": target,
            "image_url": f"http://127.0.0.1:9000/{folder}/{image}.{image_type}",
            "image_type": image_type,
            "volume_name": volume,
            "volume_size_gb": 1,
        }
        answer = self.call("POST", "/api/v1/jobs", body)
        return str(answer["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        found = self.call("GET", f"/api/v1/jobs/{job_id}")
        assert isinstance(found, dict)
        return found

    def wait_until(self, what: str, seconds: float, condition: Any) -> Any:
        """Poll ``condition`` until its answer is true, and return it."""
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            assert time.monotonic() < deadline, f"timed out after {seconds:.0f} s: {what}"
            time.sleep(0.5)
        return answer

    def running_job(self, volume: str) -> str:
        """Start a job that pauses in the middle of its download until ``let_go``; return its id."""
        self.guest.sh("touch /srv/hold")
        job_id = self.submit(volume, image=volume)
        job = self.wait_until("the job starts", 60, lambda: (job := self.job(job_id))["status"] != "pending" and job)
        assert job["status"] == "running", job
        return job_id

    def let_go(self) -> None:
        self.guest.sh("rm -f /srv/hold")

    def completes(self, job_id: str, volume: str, image: str) -> bool:
        """Wait until the job has completed; return whether the volume contains the image."""
        job = self.wait_ended(job_id)
        assert job["status"] == "completed", job
        return self.holds(volume, image)

    def wait_ended(self, job_id: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] in {"completed", "failed", "cancelled"} else None

        found = self.wait_until(f"job {job_id} ends", 300, ended)
        assert isinstance(found, dict)
        return found

    def device(self, volume: str) -> str:
        return f"{self.storage.folder}/{volume}{self.storage.suffix}"

    def volumes(self) -> set[str]:
        """Return the names of all volumes, including staged ones."""
        listed = "lvs --noheadings -o lv_name vg0" if self.storage is THIN else f"ls -A {self.storage.folder}"
        return {name.removesuffix(self.storage.suffix) for name in self.guest.sh(listed).split()} - {"thin"}

    def holds(self, volume: str, image: str) -> bool:
        """Return whether the volume starts with the whole image."""
        command = ["cmp", "-n", str(IMAGE_SIZE), self.device(volume), f"/srv/images/{image}.raw"]
        return self.guest.run(command).status == 0
