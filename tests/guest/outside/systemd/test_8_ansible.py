"""The Ansible role sets up a fresh host: package, certificates, configuration, service. Then a play makes a volume."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.ansible.playing import Ansible, install
from tests.guest.harness import Container
from tests.guest.outside.systemd.host import IMAGE_SERVER, MIB, NAME, SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.guest.harness import Images
    from tests.guest.outside.systemd.host import Host
    from tests.packaging.building import Packages

# Ansible's connection to the container: it enters its namespaces, where others would use ssh.
CONNECTION = """
import os, subprocess
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = '''
name: enter
short_description: Enter a container
description: Enters the namespaces of a container.
author: tests
options: {}
'''

class Connection(ConnectionBase):
    transport = "enter"
    has_pipelining = True

    def _connect(self):
        return self

    def close(self):
        pass

    def _run(self, command, data=None):
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
        inside = os.environ["INSIDE"].split()
        return subprocess.run([*inside, "sh", "-c", *command], input=data, capture_output=True, env=environment)

    def exec_command(self, cmd, in_data=None, sudoable=True):
        done = self._run([cmd], in_data)
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path, out_path):
        with open(in_path, "rb") as file:
            self._run(['cat > "$0"', out_path], file.read()).check_returncode()

    def fetch_file(self, in_path, out_path):
        done = self._run(['cat "$0"', in_path])
        done.check_returncode()
        with open(out_path, "wb") as file:
            file.write(done.stdout)
"""

CONFIG = {
    "sources": {
        "images": {
            "plugin": "http",
            "urls": ["http://127.0.0.1:9000/open/"],
            "allow_addresses": ["127.0.0.0/8"],
        }
    },
    "targets": {"files": {"plugin": "file", "directory": "/var/lib/libvirt/images", "overcommit": True}},
}


@dataclass
class Fresh:
    """A host that had no package yet, and plays for it."""

    guest: Container
    ansible: Ansible
    folder: Path
    packages: dict[str, Packages]

    def role(self, *words: str, version: str = "1.0.0", **options: object) -> tuple[int, str]:
        """Run the role; return the status and the output."""
        given = {
            "provisioner_package_file": str(self.packages[version].deb),
            "provisioner_clients": [{"name": "ansible", "role": "admin"}, {"name": "monitoring", "role": "viewer"}],
            "provisioner_client_directory": str(self.folder / "pki"),
            "provisioner_config": CONFIG,
            **options,
        }
        self.ansible.keywords = {
            "connection": "enter",
            "gather_facts": True,
            "roles": [{"role": "lvp.provisioner.provisioner", **given}],
        }
        variables = {"INSIDE": " ".join(self.guest.inside()), "ANSIBLE_CONNECTION_PLUGINS": self._plugins}
        done = self.ansible.play([], *words, **variables)
        return done.status, done.output

    @property
    def _plugins(self) -> str:
        folder = self.folder / "connection"
        folder.mkdir(exist_ok=True)
        (folder / "enter.py").write_text(CONNECTION)
        return str(folder)

    def files(self) -> str:
        """Return the digests of the service's files, and the process that runs it."""
        self.guest.sh("udevadm settle")
        digests = self.guest.sh(f"find /etc/{NAME} /var/cache/lvp-ansible -type f | sort | xargs sha256sum")
        return digests + self.guest.sh(f"systemctl show -P MainPID {SERVICE}")

    def volume(self, **options: object) -> dict[str, object]:
        """Run the module ``volume`` on this machine, over TLS with the fetched certificate."""
        self.ansible.keywords = {}
        pki = self.folder / "pki"
        self.ansible.options = {
            "url": f"https://localhost:{self.guest.port(8080)}",
            "ca": str(pki / "ca.pem"),
            "cert": str(pki / "ansible.pem"),
            "key": str(pki / "ansible.key"),
        }
        found = self.ansible.module("volume", **options)
        self.ansible.options = {}
        return found


@pytest.fixture(scope="module")
def fresh(images: Images, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    folder = tmp_path_factory.mktemp("role")
    install(folder)
    with Container(images, ports=[8080]) as guest:
        guest.boot()
        content = b"".join(bytes([number]) * MIB for number in range(1, 5))
        guest.put(content, "/srv/images/web.raw")
        guest.put(f"{hashlib.sha256(content).hexdigest()}  web.raw\n".encode(), "/srv/images/web.raw.sha256")
        guest.put(IMAGE_SERVER.encode(), "/root/image-server", 0o755)
        guest.start(["python3", "/root/image-server"], "/root/image-server.log")
        yield Fresh(guest, Ansible(folder, {}), folder, host.packages)


def test_role_twice(fresh: Fresh) -> None:
    status, output = fresh.role()
    assert status == 0, output
    assert fresh.guest.sh(f"systemctl is-enabled {SERVICE}; systemctl is-active {SERVICE}").split() == [
        "enabled",
        "active",
    ]
    assert fresh.guest.sh(f"stat -c '%a %U %G' /etc/{NAME}/config.toml").split() == ["640", "root", NAME]
    key = fresh.folder / "pki" / "ansible.key"
    assert "PRIVATE KEY" in key.read_text()
    assert "PRIVATE KEY" not in output
    before = fresh.files()
    status, output = fresh.role()
    assert status == 0, output
    assert "changed=0" in output.partition("PLAY RECAP")[2], output
    assert fresh.files() == before


def test_volume_over_its_certificates(fresh: Fresh) -> None:
    options = {"name": "web-01", "image_url": "http://127.0.0.1:9000/open/web.raw", "image_type": "raw", "size_gb": 1}
    made = fresh.volume(**options)
    assert made["changed"] is True, made
    assert fresh.guest.sh("stat -c %s /var/lib/libvirt/images/web-01.raw").strip() == str(2**30)
    assert fresh.volume(**options)["changed"] is False
    assert fresh.volume(name="web-01", state="absent")["changed"] is True


def test_changed_configuration_restarts(fresh: Fresh) -> None:
    config = {**CONFIG, "jobs": {"max_concurrent": 3}}
    before = fresh.files()
    status, output = fresh.role("--check", provisioner_config=config)
    assert status == 0, output
    assert "+max_concurrent = 3" in output
    assert fresh.files() == before
    status, output = fresh.role(provisioner_config=config)
    assert status == 0, output
    assert fresh.files() != before
    assert "max_concurrent = 3" in fresh.guest.sh(f"cat /etc/{NAME}/config.toml")
    status, output = fresh.role(provisioner_config=config)
    assert "changed=0" in output.partition("PLAY RECAP")[2], output


def test_invalid_configuration_is_not_written(fresh: Fresh) -> None:
    before = fresh.files()
    status, output = fresh.role(provisioner_config={**CONFIG, "jobs": {"max_concurent": 3}})
    assert status == 2
    assert "max_concurent" in output
    status, output = fresh.role(provisioner_clients=[{"name": "x", "role": "root"}])
    assert status == 2
    assert "value of role must be one of" in output
    assert fresh.files() == before


def test_new_package_and_new_name(fresh: Fresh) -> None:
    status, output = fresh.role(version="1.1.0")
    assert status == 0, output
    health = "lvp health --url https://localhost:8080 --ca /etc/libvirt-volume-provisioner/pki/ca.pem"
    assert "version 1.1.0" in fresh.guest.sh(health)
    names = ["kvm-7.example.org", "192.0.2.7"]
    status, output = fresh.role(version="1.1.0", provisioner_names=names)
    assert status == 0, output
    assert "kvm-7.example.org.pem" in fresh.guest.sh(f"cat /etc/{NAME}/config.toml")
    status, output = fresh.role(version="1.1.0", provisioner_names=[*names, "kvm-7"])
    assert status == 2
    assert "add --force to replace it" in output
    status, output = fresh.role(
        "--extra-vars", "provisioner_renew_certificates=true", version="1.1.0", provisioner_names=[*names, "kvm-7"]
    )
    assert status == 0, output


def test_one_address(fresh: Fresh) -> None:
    """The host asks the service at the address that it listens at, which is in the certificate."""
    options = {"provisioner_bind": ["127.0.0.2:8443"], "provisioner_names": ["kvm-8.example.org"]}
    status, output = fresh.role(version="1.1.0", **options)
    assert status == 0, output
    names = fresh.guest.sh(f"openssl x509 -noout -ext subjectAltName -in /etc/{NAME}/pki/servers/kvm-8.example.org.pem")
    assert "IP Address:127.0.0.2" in names
    status, output = fresh.role(version="1.1.0", **options)
    assert "changed=0" in output.partition("PLAY RECAP")[2], output
