"""From `apt install` to the first volumes. Each step builds on the one before, also across these files."""

from __future__ import annotations

import httpx
import pytest
import trustme

from tests.guest.outside.systemd.host import NAME, SERVICE, SOCKET, STATE, Host


def test_apt_install_starts_nothing(host: Host) -> None:
    said = host.apt("install", "/root/1.0.0.deb", "/root/plugin.deb")
    assert "systemctl enable --now" in said
    assert host.state() == "inactive"
    assert host.guest.sh("lvp --version").strip() == "lvp 1.0.0"
    assert host.altered() == []
    assert host.guest.sh(f"stat -c '%a %G' /etc/{NAME}/config.toml").split() == ["640", NAME]
    plugins = host.guest.sh("lvp plugins")
    assert all(name in plugins for name in ("thin-lvm", "libvirt-pools", "ledger"))


def test_start_without_a_target(host: Host) -> None:
    assert host.guest.run(["systemctl", "start", SERVICE], silence=400).status != 0
    assert "targets: is missing" in host.journal()
    host.systemctl("stop", SERVICE)  # systemd would retry a few times
    host.systemctl("reset-failed")


def test_first_connection_starts_the_service(host: Host) -> None:
    host.configure()
    host.guest.sh(f"lvp config check /etc/{NAME}/config.toml; systemctl enable --now {SOCKET}")
    assert host.state() == "inactive"
    assert host.call("GET", "/health")["status"] == "healthy"
    assert host.state() == "active"
    assert host.status_text() in {"Ready", "Ready, no jobs"}
    # systemd owns the listening socket; the service has bound none itself.
    listening = host.guest.sh("ss -Hltnp sport = :8080")
    assert '"systemd"' in listening
    assert f"pid={host.pid()}," in listening


def test_requests_without_access_are_refused(host: Host) -> None:
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


def test_provision_inside_the_sandbox(host: Host) -> None:
    job_id = host.submit("web-01")
    assert host.completes(job_id, "web-01", "web")
    # The journal entries have the job's id as a field.
    entries = host.guest.sh(f"journalctl --no-pager -o cat LVP_JOB_ID={job_id}")
    assert entries.strip()
    # The second volume is a clone on a thin pool.
    assert host.completes(host.submit("web-02"), "web-02", "web")
    # The separately packaged plugin got the event, and the sandbox lets it write to the state directory.
    assert job_id in host.guest.sh(f"cat {STATE}/ledger.jsonl")


def test_event_loop_has_a_higher_priority(host: Host) -> None:
    assert host.nice() == (-10, {0})


def test_qemu_img_is_sandboxed(host: Host) -> None:
    """With ``sandbox = "required"`` the job fails if a layer of the sandbox is missing."""
    host.guest.sh(
        "cd /srv/images; qemu-img convert -f raw -O qcow2 web.raw disk.qcow2; sha256sum disk.qcow2 > disk.qcow2.sha256"
    )
    assert host.completes(host.submit("disk-01", "disk", image_type="qcow2"), "disk-01", "web")


def test_bucket_secret_from_a_credential(host: Host) -> None:
    """The server requires a valid signature. Only root can read the credential."""
    assert host.completes(host.submit("secret-01", "secret", folder="bucket"), "secret-01", "secret")
    held = host.guest.sh(f"stat -c '%a %U' /run/credentials/{SERVICE}/bucket-secret-key").split()
    assert held[1] == "root"
    assert int(held[0], 8) & 0o077 == 0
    assert "s3cret" not in host.journal() + host.guest.sh(f"tr '\\0' '\\n' < /proc/{host.pid()}/environ")


def test_reload_of_roles_and_certificates(host: Host) -> None:
    fingerprint = "openssl s_client -connect 127.0.0.1:8080 </dev/null 2>/dev/null | openssl x509 -noout -fingerprint"
    before = host.guest.sh(fingerprint)
    issued = host.authority.issue_cert("127.0.0.1", "localhost")
    host.guest.put(b"".join(part.bytes() for part in issued.cert_chain_pems), f"/etc/{NAME}/server.pem")
    host.guest.put(issued.private_key_pem.bytes(), f"/etc/{NAME}/server.key", 0o600)
    host.guest.sh(
        f'sed -i \'s/"viewer.example.org" = "viewer"/"viewer.example.org" = "admin"/\' /etc/{NAME}/config.toml'
    )
    pid = host.pid()
    host.systemctl("reload", SERVICE)
    host.wait_until("the new certificate is served", 60, lambda: host.guest.sh(fingerprint) != before)
    host.call("DELETE", "/api/v1/volumes/main/web-02", who="viewer.example.org")
    assert host.pid() == pid


def test_reload_of_an_invalid_file(host: Host) -> None:
    host.guest.sh(f"cp /etc/{NAME}/config.toml /root/good.toml; echo 'nonsense = 1' > /etc/{NAME}/config.toml")
    assert host.guest.run(["systemctl", "reload", SERVICE]).status != 0
    assert host.state() == "active"
    assert host.call("GET", "/health")["status"] == "healthy"
    host.guest.sh(f"cp /root/good.toml /etc/{NAME}/config.toml")
