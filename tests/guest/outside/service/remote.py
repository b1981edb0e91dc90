"""The service in the guest: its installation, and a client for it."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import trustme

from lvp_target_lvm.names import base_name

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guest.harness import Guest

PORT = 8443
GROUPS = {"plain": "vgplain", "thin": "vgthin"}
GIB = 2**30
# Seconds. The guest's processors may be emulated, and the machine may be busy.
TIMEOUT = 300.0

CONFIG = """
state_directory = "/var/lib/lvp"
[server]
bind = ["0.0.0.0:8443"]
tls_certificate = "/etc/lvp/server.pem"
tls_key = "/etc/lvp/server.pem"
client_ca = "/etc/lvp/ca.pem"
client_certificate = "required"
[auth]
default_certificate_role = "admin"
[jobs]
on_restart = "fail"
[cache]
min_free = "64MiB"
[log]
format = "json"
[sources.here]
plugin = "http"
urls = ["http://10.0.2.2:{images}/"]
[targets.plain]
plugin = "lvm"
volume_group = "vgplain"
tool_path = "/root/tools"
[targets.thin]
plugin = "thin-lvm"
volume_group = "vgthin"
pool = "pool"
max_bases = {bases}
tool_path = "/root/tools"
"""

# A wrapper of LVM. /root/armed holds a pattern, a delay in seconds and what should end. After the first command that
# matches the pattern, and the delay, it creates /root/fired and kills the service, or lets the test cut the power.
TOOL = """#!/bin/sh
/usr/sbin/lvm "$@"
status=$?
[ -e /root/armed ] || exit $status
{ read -r pattern; read -r delay; read -r end; } < /root/armed
case "$*" in $pattern) ;; *) exit $status;; esac
mv /root/armed /root/fired-soon
strike() {
    sleep "$delay"
    mv /root/fired-soon /root/fired
    [ "$end" = kill ] && kill -9 $PPID && exit
    sleep 1000
}
[ "$delay" = 0 ] && strike
strike > /dev/null 2>&1 &
exit $status
"""


def device(target: str, name: str) -> str:
    """Return the path of a target's volume in the guest."""
    return f"/dev/{GROUPS[target]}/{name}"


@dataclass
class Remote:
    """The service in a guest. ``folder`` has the images; they are served on this machine's port ``images``."""

    guest: Guest
    keys: Path
    images: str
    folder: Path
    bases: int = 20
    pid: int = 0
    starts: int = 0
    submitted: int = 0  # jobs since the last start
    _context: ssl.SSLContext | None = field(default=None)

    def install(self) -> None:
        """Create volume groups, certificates and the configuration, and start the service."""
        ca = trustme.CA()
        server, client = ca.issue_cert("127.0.0.1", "localhost"), ca.issue_cert("client.example.org")
        ca.cert_pem.write_to_path(self.keys / "ca.pem")
        client.private_key_and_cert_chain_pem.write_to_path(self.keys / "client.pem")
        self._context = ssl.create_default_context(cafile=str(self.keys / "ca.pem"))
        self._context.load_cert_chain(self.keys / "client.pem")
        self.guest.sh(
            "vgcreate -qy vgplain /dev/disk/by-id/virtio-plain; vgcreate -qy vgthin /dev/disk/by-id/virtio-thin;"
            "lvcreate -qy --type thin-pool -L 6G -n pool vgthin; mkdir -p /etc/lvp /root/raw"
        )
        self.guest.put(ca.cert_pem.bytes(), "/etc/lvp/ca.pem")
        self.guest.put(server.private_key_and_cert_chain_pem.bytes(), "/etc/lvp/server.pem", mode=0o600)
        self.guest.put(CONFIG.format(images=self.images, bases=self.bases).encode(), "/etc/lvp/config.toml")
        self.guest.put(TOOL.encode(), "/root/tools/lvm", mode=0o755)
        for name in ("a", "b"):
            self.guest.sh(
                f"wget -q -O /root/raw/{name} http://10.0.2.2:{self.images}/{name}.raw || "
                f'python3 -c "import urllib.request as r; r.urlretrieve('
                f"'http://10.0.2.2:{self.images}/{name}.raw', '/root/raw/{name}')\""
            )
        self.guest.sh("sync")
        self.start()

    def start(self) -> None:
        """Start the service and wait until it is ready."""
        self.starts += 1
        self.submitted = 0
        command = ["python3", "-m", "provisioner.cli", "serve", "--config", "/etc/lvp/config.toml"]
        self.pid = self.guest.start(command, f"/root/log-{self.starts}")
        self.until(self.ready)

    def log(self) -> str:
        return self.guest.get(f"/root/log-{self.starts}").decode(errors="replace")

    def ready(self) -> bool:
        try:
            return self.call("GET", "/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def arm(self, pattern: str, delay: float, end: str) -> None:
        """Arm the wrapper of LVM: ``delay`` seconds after a matching command ``struck`` is true.

        With ``end`` "kill" it also kills the service.
        """
        self.guest.put(f"{pattern}\n{delay:g}\n{end}\n".encode(), "/root/armed")

    def struck(self) -> bool:
        return self.guest.run(["test", "-e", "/root/fired"]).status == 0

    def gone(self) -> None:
        """Wait until the killed service has exited."""
        self.guest.sh(f"while kill -0 {self.pid} 2>/dev/null; do sleep 0.1; done")

    def restart(self) -> None:
        """Restart the service cleanly."""
        self.guest.sh(f"kill {self.pid}")
        self.gone()
        self.start()

    def until(self, what: Any, seconds: float = TIMEOUT) -> Any:
        stop = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < stop, self.log()[-3000:]
            time.sleep(0.2)
        return found

    def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        url = f"https://127.0.0.1:{self.guest.port(PORT)}{path}"
        with httpx.Client(verify=self._context or True, trust_env=False, timeout=60) as client:
            return client.request(method, url, json=body)

    def submit(self, image: str, name: str, target: str) -> str:
        body = {
            "image_url": f"http://10.0.2.2:{self.images}/{image}",
            "volume_name": name,
            "volume_size_gb": 1,
            "image_type": image.rpartition(".")[2],
            "target": target,
        }
        answer = self.call("POST", "/api/v1/jobs", body)
        assert answer.status_code == 202, answer.text
        self.submitted += 1
        return answer.json()["job_id"]

    def job(self, job_id: str) -> dict[str, Any]:
        return self.call("GET", f"/api/v1/jobs/{job_id}").json()

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait for the end of the job and return the job."""

        def look() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] not in {"pending", "running"} else None

        return self.until(look)

    def holds(self, device: str, disk: str, *, tail: int | None = None) -> bool:
        """Return whether the device contains that disk and then zeros, to its end or for ``tail`` bytes."""
        size = (self.folder / f"{disk}.raw").stat().st_size
        zeros = GIB - size if tail is None else tail
        script = f"cmp -n {size} /root/raw/{disk} {device} && cmp -n {zeros} -i 0:{size} /dev/zero {device}"
        return self.guest.run(["sh", "-c", script]).status == 0

    def base_of(self, disk: str) -> str:
        """Return the name of the base of that disk's qcow2 image."""
        digest = (self.folder / f"{disk}.qcow2.sha256").read_text().split()[0]
        return base_name(f"sha256:{digest}", "qcow2")

    def check_bases(self) -> None:
        """Raise if a base in the pool does not contain its disk."""
        there = self.volumes("vgthin")
        for disk in ("a", "b"):
            base = self.base_of(disk)
            if base in there:
                self.guest.sh(f"lvchange -qay -K vgthin/{base}; cmp {device('thin', base)} /root/raw/{disk}")
                self.guest.sh(f"lvchange -qan vgthin/{base}")

    def volumes(self, group: str) -> set[str]:
        """Return the names of all logical volumes of the group except the pool."""
        return set(self.guest.sh(f"lvs --noheadings -o lv_name {group}").split()) - {"pool"}

    def left_over(self) -> set[str]:
        """Return the volumes under construction or set aside on all targets."""
        rows = self.guest.sh("lvs --noheadings --separator , -o lv_name,lv_tags vgplain vgthin").splitlines()
        return {row.strip() for row in rows if row.strip().startswith(("lvp.stage.", "lvp.old.", "lvp.gone."))}
