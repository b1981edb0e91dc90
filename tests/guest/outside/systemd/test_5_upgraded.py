"""An upgrade in the middle of a job, and a downgrade. State is kept, and the job is resumed."""

from __future__ import annotations

from tests.guest.outside.systemd.host import NAME, SERVICE, STATE, Host


def test_upgrade_during_a_job(host: Host) -> None:
    """It works even if systemd's start limit is reached, because an upgrade is not a crash loop."""
    limit = f"/etc/systemd/system/{SERVICE}.d/limit.conf"
    host.guest.put(b"[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=1\n", limit)
    host.guest.sh(f"systemctl daemon-reload; systemctl reset-failed; systemctl restart {SERVICE}", silence=400)
    history = len(host.call("GET", "/api/v1/jobs")["jobs"])
    job_id = host.running_job("db-03")
    host.apt("install", "/root/1.1.0.deb")
    host.let_go()
    host.wait_until("the service is back", 300, lambda: host.state() == "active")
    host.guest.sh(f"rm {limit}; systemctl daemon-reload")
    assert host.call("GET", "/health")["version"] == "1.1.0"
    assert host.completes(job_id, "db-03", "db-03")
    assert len(host.call("GET", "/api/v1/jobs")["jobs"]) == history + 1
    assert host.guest.sh(f"cmp /root/good.toml /etc/{NAME}/config.toml && echo same").strip() == "same"
    assert [line for line in host.altered() if "config.toml" not in line] == []
    # The plugin's package did not change, and the new version works with it.
    assert job_id in host.guest.sh(f"cat {STATE}/ledger.jsonl")


def test_downgrade_keeps_jobs(host: Host) -> None:
    jobs = len(host.call("GET", "/api/v1/jobs")["jobs"])
    host.apt("install", "--allow-downgrades", "/root/1.0.0.deb")
    host.wait_until("the service is back", 300, lambda: host.state() == "active")
    assert host.call("GET", "/health")["version"] == "1.0.0"
    assert len(host.call("GET", "/api/v1/jobs")["jobs"]) == jobs
