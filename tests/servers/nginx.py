"""A real nginx that serves one folder on loopback, with and without TLS."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trustme

from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CONFIG = """
daemon off; master_process off; pid {work}/pid; error_log {work}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log {work}/access.log; sendfile on; types {{ }} default_type application/octet-stream;
  client_body_temp_path {work}/1; proxy_temp_path {work}/2; fastcgi_temp_path {work}/3;
  uwsgi_temp_path {work}/4; scgi_temp_path {work}/5;
  server {{
    listen 127.0.0.1:{port}; listen 127.0.0.1:{tls_port} ssl;
    ssl_certificate {work}/server.pem; ssl_certificate_key {work}/server.pem;
    root {root}; autoindex off; limit_rate $arg_rate;
    location /basic/ {{ alias {root}/; auth_basic lab; auth_basic_user_file {work}/htpasswd; }}
    location /listed/ {{ alias {root}/; autoindex on; }}
    location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
    location /certificate/ {{ alias {root}/; if ($ssl_client_verify != SUCCESS) {{ return 403; }} }}
    ssl_client_certificate {work}/ca.pem; ssl_verify_client optional;
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Nginx:
    """``basic/`` requires the login ``lab`` / ``open sesame``, ``certificate/`` a client certificate of ``ca``.

    ``listed/`` has listings of its folders.

    The query ``rate=100m`` limits a transfer to that many bytes per second.
    """

    url: str
    tls_url: str
    root: Path
    ca_file: Path
    ca: trustme.CA
    access_log: Path


@contextmanager
def nginx(root: Path, work: Path) -> Iterator[Nginx]:
    """Serve ``root`` until the block ends. Creates both folders if they are missing."""
    root.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(work / "ca.pem")
    ca.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(work / "server.pem")
    (work / "htpasswd").write_text("lab:{PLAIN}open sesame\n")
    port, tls_port = free_ports(2)
    config = work / "nginx.conf"
    config.write_text(_CONFIG.format(work=work, root=root, port=port, tls_port=tls_port))
    process = subprocess.Popen(["nginx", "-p", str(work), "-c", str(config)], stderr=subprocess.PIPE)
    try:
        _wait_for(process, port)
        yield Nginx(
            f"http://127.0.0.1:{port}", f"https://127.0.0.1:{tls_port}", root, work / "ca.pem", ca, work / "access.log"
        )
    finally:
        process.terminate()
        process.communicate(timeout=90)


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(5000):
        if process.poll() is not None:
            raise RuntimeError(f"nginx ended: {process.communicate()[1].decode()}")
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.02)
    raise RuntimeError("nginx does not answer")
