"""The package is removed: its jobs end cleanly, a purge removes the service's own files, and volumes stay."""

from __future__ import annotations

import re

from tests.guest.outside.systemd.host import NAME, STATE, Host


def test_remove_during_a_job(host: Host) -> None:
    host.running_job("db-04")
    host.apt("remove", NAME)
    host.let_go()
    assert host.state() == "inactive"
    assert host.volumes() >= {"web-01", "db-01"}
    assert not [name for name in host.volumes() if re.search("db-04|stage", name)]
    assert host.guest.sh(f"ls /usr/lib/{NAME} 2>&1 || true").startswith("ls: cannot access")
    assert host.guest.sh("pgrep -f '[l]ibvirt-volume-provisioner serve' || true").strip() == ""
    assert "jobs.sqlite" in host.guest.sh(f"ls {STATE}")
    assert host.guest.sh(f"test -e /etc/{NAME}/config.toml && echo kept").strip() == "kept"


def test_purge_keeps_volumes(host: Host) -> None:
    host.guest.sh(f"mkdir -p {STATE}/volumes; echo precious > {STATE}/volumes/disk.raw")
    said = host.apt("purge", NAME)
    assert f"{STATE} was kept because it contains other files" in said
    # The ledger belongs to the plugin.
    assert set(host.guest.sh(f"find {STATE} -type f").split()) == {f"{STATE}/volumes/disk.raw", f"{STATE}/ledger.jsonl"}
    left = set(host.guest.sh(f"ls /etc/{NAME}").split())
    assert left - {"server.key"} == {"clients-ca.pem", "secrets", "server.pem"}
    assert host.volumes() >= {"web-01", "db-01"}
    assert host.guest.sh(f"systemctl list-unit-files '{NAME}*' --no-legend || true").strip() == ""
