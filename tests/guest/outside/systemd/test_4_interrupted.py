"""A restart and a watchdog timeout in the middle of a job. The job is resumed."""

from __future__ import annotations

from tests.guest.outside.systemd.host import SERVICE, Host


def test_restart_during_a_job(host: Host) -> None:
    job_id = host.running_job("db-01")
    host.wait_until("the job is in the status", 60, lambda: host.status_text().startswith("1 running"))
    assert "db-01" in host.status_text()
    host.systemctl("restart", SERVICE)
    assert "db-01" not in host.volumes()
    host.let_go()
    assert host.completes(job_id, "db-01", "db-01")


def test_watchdog_restart_during_a_job(host: Host) -> None:
    restarts = host.systemctl("show", "-P", "NRestarts", SERVICE)
    job_id = host.running_job("db-02")
    pid = host.pid()
    host.guest.sh(f"kill -STOP {pid}")
    host.let_go()
    host.wait_until(
        "the watchdog restarts the service", 240, lambda: host.systemctl("show", "-P", "NRestarts", SERVICE) != restarts
    )
    host.wait_until("the service is back", 300, lambda: host.state() == "active")
    assert host.pid() != pid
    assert host.completes(job_id, "db-02", "db-02")
