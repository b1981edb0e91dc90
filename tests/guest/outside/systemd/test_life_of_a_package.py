"""From `apt install` to `purge`: the steps of one host's life, in order; each builds on the one before."""

from __future__ import annotations

import re

import httpx
import pytest
import trustme

from tests.guest.outside.systemd.host import NAME, SERVICE, Host

STATE = f"/var/lib/{NAME}"
SOCKET = f"{NAME}.socket"


def status_text(host: Host) -> str:
    return host.systemctl("show", "-P", "StatusText", SERVICE).strip()


def test_apt_installs_it_and_starts_nothing(host: Host) -> None:
    said = host.apt("install", "/root/1.0.0.deb")
    assert "systemctl enable --now" in said
    assert host.state() == "inactive"
    assert host.guest.sh("lvp --version").strip() == "lvp 1.0.0"
    assert host.altered() == []
    assert host.guest.sh(f"stat -c '%a %G' /etc/{NAME}/config.toml").split() == ["640", NAME]
    assert "thin-lvm" in host.guest.sh("lvp plugins")
    assert "libvirt-pools" in host.guest.sh("lvp plugins")


def test_start_without_a_target_fails_and_says_why(host: Host) -> None:
    assert host.guest.run(["systemctl", "start", SERVICE], silence=400).status != 0
    assert "targets: is missing" in host.guest.sh(f"journalctl --no-pager -o cat -u {SERVICE}")
    host.systemctl("stop", SERVICE)  # systemd would try again a few times
    host.systemctl("reset-failed")


def test_first_connection_starts_it(host: Host) -> None:
    host.guest.sh(
        f"cp /root/config.toml /root/tls/* /etc/{NAME}/; mkdir -p /etc/systemd/system/{SOCKET}.d;"
        f"cp /root/listen.conf /etc/systemd/system/{SOCKET}.d/; lvp config check /etc/{NAME}/config.toml;"
        f"systemctl daemon-reload; systemctl enable --now {SOCKET}"
    )
    assert host.state() == "inactive"
    assert host.call("GET", "/health")["status"] == "healthy"
    assert host.state() == "active"
    assert status_text(host) in {"Ready", "Ready, no jobs"}
    assert host.systemctl("show", "-P", "WatchdogUSec", SERVICE).strip() == "30s"


def test_strangers_stay_outside(host: Host) -> None:
    with pytest.raises(httpx.TransportError):
        host.call("GET", "/health", who=None)
    real, host.authority = host.authority, trustme.CA()
    try:
        with pytest.raises(httpx.TransportError):
            host.call("GET", "/health")
    finally:
        host.authority = real
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        host.call("POST", "/api/v1/jobs", {}, who="viewer.example.org")
    assert refusal.value.response.status_code == 403


def test_it_provisions_in_its_sandbox(host: Host) -> None:
    job_id = host.submit("web-01")
    assert host.wait_ended(job_id)["status"] == "completed"
    assert host.holds("web-01", "web")
    # Logged with fields, under the job's id.
    entries = host.guest.sh(f"journalctl --no-pager -o cat LVP_JOB_ID={job_id}")
    assert entries.strip()
    # And a clone, which stays within the pool.
    assert host.wait_ended(host.submit("web-02"))["status"] == "completed"
    assert host.holds("web-02", "web")


def test_reload_takes_in_roles_and_certificates(host: Host) -> None:
    fingerprint = "openssl s_client -connect 127.0.0.1:8080 </dev/null 2>/dev/null | openssl x509 -noout -fingerprint"
    before = host.guest.sh(fingerprint)
    issued = host.authority.issue_cert("127.0.0.1", "localhost")
    host.guest.put(b"".join(part.bytes() for part in issued.cert_chain_pems), f"/etc/{NAME}/server.pem")
    host.guest.put(issued.private_key_pem.bytes(), f"/etc/{NAME}/server.key", 0o600)
    host.guest.sh(
        f'sed -i \'s/"viewer.example.org" = "viewer"/"viewer.example.org" = "admin"/\' /etc/{NAME}/config.toml'
    )
    pid = host.systemctl("show", "-P", "MainPID", SERVICE)
    host.systemctl("reload", SERVICE)
    host.wait_until("the new certificate is served", 60, lambda: host.guest.sh(fingerprint) != before)
    host.call("DELETE", "/api/v1/volumes/thin/web-02", who="viewer.example.org")
    assert host.systemctl("show", "-P", "MainPID", SERVICE) == pid


def test_reload_of_a_bad_file_fails_and_changes_nothing(host: Host) -> None:
    host.guest.sh(f"cp /etc/{NAME}/config.toml /root/good.toml; echo 'nonsense = 1' > /etc/{NAME}/config.toml")
    assert host.guest.run(["systemctl", "reload", SERVICE]).status != 0
    assert host.state() == "active"
    assert host.call("GET", "/health")["status"] == "healthy"
    host.guest.sh(f"cp /root/good.toml /etc/{NAME}/config.toml")


def running_job(host: Host, volume: str) -> str:
    """A job that is half-way through its download and stays there."""
    host.guest.sh("touch /srv/hold")
    job_id = host.submit(volume, image=volume)
    host.wait_until("the job runs", 60, lambda: host.job(job_id)["status"] == "running")
    return job_id


def test_restart_in_mid_job_loses_nothing(host: Host) -> None:
    job_id = running_job(host, "db-01")
    host.systemctl("restart", SERVICE)
    assert "db-01" not in host.volumes()
    host.guest.sh("rm /srv/hold")
    assert host.wait_ended(job_id)["status"] == "completed"
    assert host.holds("db-01", "db-01")


def test_killed_service_comes_back_and_goes_on(host: Host) -> None:
    job_id = running_job(host, "db-02")
    host.guest.sh(f"systemctl kill --signal=KILL {SERVICE}")
    host.guest.sh("rm /srv/hold")
    assert host.wait_ended(job_id)["status"] == "completed"
    assert host.holds("db-02", "db-02")


def test_upgrade_in_mid_job(host: Host) -> None:
    history = len(host.call("GET", "/api/v1/jobs")["jobs"])
    job_id = running_job(host, "db-03")
    host.apt("install", "/root/1.1.0.deb")
    host.guest.sh("rm /srv/hold")
    host.wait_until("the service is back", 300, lambda: host.state() == "active")
    assert host.call("GET", "/health")["version"] == "1.1.0"
    assert host.wait_ended(job_id)["status"] == "completed"
    assert host.holds("db-03", "db-03")
    assert len(host.call("GET", "/api/v1/jobs")["jobs"]) == history + 1
    assert host.guest.sh(f"cmp /root/good.toml /etc/{NAME}/config.toml && echo same").strip() == "same"
    assert [line for line in host.altered() if "config.toml" not in line] == []


def test_downgrade_keeps_what_there_is(host: Host) -> None:
    jobs = len(host.call("GET", "/api/v1/jobs")["jobs"])
    host.apt("install", "--allow-downgrades", "/root/1.0.0.deb")
    host.wait_until("the service is back", 300, lambda: host.state() == "active")
    assert host.call("GET", "/health")["version"] == "1.0.0"
    assert len(host.call("GET", "/api/v1/jobs")["jobs"]) == jobs


def test_remove_in_mid_job_ends_it_cleanly(host: Host) -> None:
    running_job(host, "db-04")
    host.apt("remove", NAME)
    assert host.state() == "inactive"
    assert host.volumes() >= {"web-01", "db-01", "db-02", "db-03"}
    assert not [name for name in host.volumes() if re.search("db-04|stage", name)]
    assert host.guest.sh(f"ls /usr/lib/{NAME} 2>&1 || true").startswith("ls: cannot access")
    assert host.guest.sh("pgrep -f '[l]ibvirt-volume-provisioner serve' || true").strip() == ""
    assert "jobs.sqlite" in host.guest.sh(f"ls {STATE}")
    assert host.guest.sh(f"test -e /etc/{NAME}/config.toml && echo kept").strip() == "kept"


def test_purge_removes_what_is_ours_and_no_volume(host: Host) -> None:
    host.guest.sh(f"mkdir -p {STATE}/volumes; echo precious > {STATE}/volumes/disk.raw")
    said = host.apt("purge", NAME)
    assert "is left" in said
    assert host.guest.sh(f"find {STATE} -type f").split() == [f"{STATE}/volumes/disk.raw"]
    assert host.guest.sh(f"ls /etc/{NAME}").split() == ["clients-ca.pem", "server.key", "server.pem"]
    assert host.volumes() >= {"web-01", "db-01", "db-02", "db-03"}
    assert host.guest.sh(f"systemctl list-unit-files '{NAME}*' --no-legend || true").strip() == ""
