"""The server's TLS key and token key as systemd credentials, which only the service can read."""

from __future__ import annotations

import httpx
import pytest

from tests.guest.outside.systemd.host import NAME, SERVICE, STATE, Host

DROP_IN = f"""
[Service]
LoadCredential=tls-key:/etc/{NAME}/secrets/tls-key
LoadCredential=token-key:/etc/{NAME}/secrets/token-key
"""


def test_keys_from_credentials(host: Host) -> None:
    issued = host.authority.issue_cert("127.0.0.1", "localhost")
    host.guest.put(b"".join(part.bytes() for part in issued.cert_chain_pems), f"/etc/{NAME}/server.pem")
    host.guest.put(issued.private_key_pem.bytes(), f"/etc/{NAME}/secrets/tls-key", 0o600)
    host.guest.put(DROP_IN.encode(), f"/etc/systemd/system/{SERVICE}.d/keys.conf")
    host.guest.sh(
        f"cd /etc/{NAME}; rm server.key; sed -i -e 's|^tls_key = .*|tls_key = \"/run/credentials/{SERVICE}/tls-key\"|'"
        " -e 's|^client_certificate = .*|client_certificate = \"optional\"|'"
        " -e 's|^.auth.$|&\\ntoken_key = \"credential:token-key\"|' config.toml;"
        f"systemctl daemon-reload; cp config.toml /root/good.toml; rm {STATE}/tokens.key"
    )
    host.systemctl("restart", SERVICE)
    # On the host, `lvp` reads the same key from the file that the credential is loaded from.
    made = host.guest.sh(
        f"CREDENTIALS_DIRECTORY=/etc/{NAME}/secrets lvp token create automation --config /etc/{NAME}/config.toml"
    )
    assert "jobs" in host.call("GET", "/api/v1/jobs", who=None, token=made.split()[-1])
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        host.call("GET", "/api/v1/jobs", who=None, token="another")
    assert refusal.value.response.status_code == 401
    assert host.guest.sh(f"ls {STATE}/tokens.key 2>&1 || true").startswith("ls: cannot access")


def test_reload_with_credentials(host: Host) -> None:
    host.systemctl("reload", SERVICE)
    assert host.call("GET", "/health")["status"] == "healthy"
