"""The rpm on a host with systemd is installed, upgraded and erased by rpm itself. Its scriptlets work like dpkg's.

The host is a Debian, whose rpm database has no other packages, so dependencies are not checked.
"""

from __future__ import annotations

from tests.guest.outside.systemd.host import NAME, SERVICE, SOCKET, STATE, Host


def rpm(host: Host, *words: str) -> str:
    return host.guest.sh(" ".join(["rpm", "--nodeps", *words]), silence=900)


def test_install_creates_the_group_only(host: Host) -> None:
    host.guest.sh(f"groupdel {NAME}; rm -rf /etc/{NAME}")
    said = rpm(host, "--install", "/root/1.0.0.rpm", "/root/plugin.rpm")
    assert "systemctl enable --now" in said
    assert host.guest.sh(f"stat -c '%a %G' /etc/{NAME}/config.toml").split() == ["640", NAME]
    assert host.guest.sh(f"stat -c %a {STATE} /run/lock/lvm").split() == ["700", "700"]
    assert host.guest.sh(f"ls /usr/lib/{NAME}/site/provisioner/__pycache__").strip()
    assert host.guest.sh(f"rpm --verify --nodeps {NAME}").strip() == ""
    assert host.state() == "inactive"


def test_rpm_upgrade_during_a_job(host: Host) -> None:
    host.configure()
    host.systemctl("enable", "--now", SOCKET)
    assert host.call("GET", "/health")["version"] == "1.0.0"
    job_id = host.running_job("db-06")
    said = rpm(host, "--upgrade", "/root/1.1.0.rpm")
    assert "systemctl enable --now" not in said
    host.let_go()
    host.wait_until("the service is back", 300, lambda: host.state() == "active")
    assert host.call("GET", "/health")["version"] == "1.1.0"
    assert host.completes(job_id, "db-06", "db-06")
    assert job_id in host.guest.sh(f"cat {STATE}/ledger.jsonl")
    assert host.guest.sh(f"cmp /root/config.toml /etc/{NAME}/config.toml && echo same").strip() == "same"
    assert host.systemctl("is-enabled", SOCKET).strip() == "enabled"


def test_erase_during_a_job_keeps_history(host: Host) -> None:
    host.running_job("db-04")
    rpm(host, "--erase", NAME)
    host.let_go()
    assert {host.state(unit) for unit in (SERVICE, SOCKET)} == {"inactive"}
    assert "db-04" not in host.volumes()
    assert "db-06" in host.volumes()
    assert host.guest.sh(f"find /etc/systemd/system -name '{SOCKET}'").strip() == ""
    assert host.guest.sh(f"cat /etc/{NAME}/config.toml.rpmsave") == host.guest.sh("cat /root/config.toml")
    assert "jobs.sqlite" in host.guest.sh(f"ls {STATE}")
    assert host.guest.sh(f"find /usr/lib/{NAME} -path '*/site*' || true").strip() == ""
