"""Tests of the systemd files: valid, with the documented sandbox."""

from __future__ import annotations

import re
import subprocess

from tests.packaging.building import CHECKOUT

SYSTEMD = CHECKOUT / "packaging" / "systemd"
SERVICE = SYSTEMD / "libvirt-volume-provisioner.service"
SOCKET = SYSTEMD / "libvirt-volume-provisioner.socket"
DOCS = (CHECKOUT / "docs" / "packaging.md").read_text()


def exposure():
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", SERVICE],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return re.search(r"Overall exposure level for \S+: (\d+\.\d+)", said.stdout)[1]


def test_exposure_is_documented():
    assert f"overall exposure level of **{exposure()}**" in DOCS


def test_units_are_valid(tmp_path):
    for unit in (SERVICE, SOCKET):
        text = unit.read_text().replace("/usr/bin/libvirt-volume-provisioner", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *(tmp_path / unit.name for unit in (SERVICE, SOCKET))]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in said.stderr.splitlines() if "libvirt-volume-provisioner" in line]
    assert ours == []


def test_sysusers_and_tmpfiles_apply(tmp_path):
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", SYSTEMD / "sysusers.conf"], check=True)
    assert "libvirt-volume-provisioner:" in (tmp_path / "etc/group").read_text()
    config = tmp_path / "etc/libvirt-volume-provisioner/config.toml"
    config.parent.mkdir()
    config.touch()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    with (tmp_path / "etc/group").open("a") as group:
        group.write("root:x:0:\n")
    subprocess.run(["systemd-tmpfiles", "--create", f"--root={tmp_path}", SYSTEMD / "tmpfiles.conf"], check=True)
    assert config.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "var/lib/libvirt-volume-provisioner").stat().st_mode & 0o777 == 0o700


def test_open_directives_are_documented():
    """Each directive that systemd-analyze marks as missing is in the documentation's table."""
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", SERVICE],
        capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    open_ones = set(re.findall(r"^✗ (\S+?)=", said.stdout, re.MULTILINE))
    explained = set(re.findall(r"`(\w+)=", DOCS))
    assert open_ones - explained == set()
