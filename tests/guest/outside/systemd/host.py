"""The host the package is installed on, as its operator and its clients see it."""

from __future__ import annotations

import re
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    import trustme

    from tests.guest.harness import Guest

MIB = 1024**2
NAME = "libvirt-volume-provisioner"
SERVICE = f"{NAME}.service"

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
[sources.images]
plugin = "http"
urls = ["http://127.0.0.1:9000/"]
[targets.thin]
plugin = "thin-lvm"
volume_group = "vg0"
pool = "thin"
"""

DROP_IN = """
[Socket]
ListenStream=
ListenStream=0.0.0.0:8080
"""

# An image of its own for each job that is interrupted: one that was seen before would be cloned at once.
MORE_IMAGES = """
cd /srv/images
for name in db-01 db-02 db-03 db-04; do { echo $name; cat web.raw; } | head -c 64M > $name.raw; done
for image in *.raw; do sha256sum $image > $image.sha256; done
"""

# Gives each image out whole at once, or, while the file /srv/hold is there, its first half and nothing more.
IMAGE_SERVER = """
import http.server, os, time
HALF = 32 << 20
class Images(http.server.SimpleHTTPRequestHandler):
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


@dataclass
class Host:
    """The guest, and the client's side of the API over its forwarded port."""

    guest: Guest
    authority: trustme.CA

    def systemctl(self, *words: str) -> str:
        return self.guest.sh(" ".join(["systemctl", *words]), silence=400)

    def state(self, unit: str = SERVICE) -> str:
        return self.guest.run(["systemctl", "is-active", unit]).output.strip()

    def apt(self, *words: str) -> str:
        command = f"DEBIAN_FRONTEND=noninteractive apt-get -y -qq {' '.join(words)}"
        return self.guest.sh(command, silence=900)

    def altered(self) -> list[str]:
        """Files of the package that are not as it brought them; the guest's dpkg leaves documentation out."""
        lines = self.guest.sh(f"dpkg --verify {NAME}").splitlines()
        return [line for line in lines if not re.search(r"missing +/usr/share/(doc|man)", line)]

    def context(self, who: str | None) -> ssl.SSLContext:
        """TLS as a client has it; with a certificate in the name of ``who``."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if who is not None:
            self.authority.issue_cert(who, common_name=who).configure_cert(context)
        return context

    def call(self, method: str, path: str, body: object = None, who: str | None = "operator.example.org") -> Any:
        """One request from outside; raises httpx.HTTPStatusError on 4xx and 5xx."""
        url = f"https://127.0.0.1:{self.guest.port(8080)}{path}"
        with httpx.Client(verify=self.context(who), trust_env=False, timeout=120) as client:
            answer = client.request(method, url, json=body).raise_for_status()
            return answer.json() if answer.content else None

    def submit(self, volume: str, image: str = "web") -> str:
        body = {
            "image_url": f"http://127.0.0.1:9000/{image}.raw",
            "image_type": "raw",
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
        """The first true answer of ``condition``; what the service does cannot be waited for in another way."""
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.5)
        return answer

    def wait_ended(self, job_id: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] in {"completed", "failed", "cancelled"} else None

        found = self.wait_until(f"job {job_id} ends", 300, ended)
        assert isinstance(found, dict)
        return found

    def volumes(self) -> set[str]:
        return set(self.guest.sh("lvs --noheadings -o lv_name vg0").split()) - {"thin"}

    def holds(self, volume: str, image: str) -> bool:
        """Whether the volume begins with the whole image."""
        return (
            self.guest.run(["cmp", "-n", str(64 * MIB), f"/dev/vg0/{volume}", f"/srv/images/{image}.raw"]).status == 0
        )
