"""Tests of failing starts: the daemon prints one line without a traceback, returns a status and changes nothing."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest
import tomli_w
import trustme

from tests.end_to_end.daemon import LVP, until

pytestmark = pytest.mark.slow

# Passes a socket as systemd does, then runs the service.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def refused(daemon, *words):
    """Check that the daemon ends by itself and prints one line that contains ``words``."""
    daemon.launch()
    status, said = daemon.ended()
    assert status in {1, 2}, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if "operator's token" not in line]
    assert len(lines) == 1, said
    assert all(word in lines[0] for word in words), said


def test_start_with_locked_state_directory(make_daemon):
    first, second = make_daemon().start(), make_daemon()
    second.starts = 10
    refused(second, "another", str(first.pid), str(first.folder / "state"))
    second.starts = 1
    assert first.call("GET", "/health").json()["status"] == "healthy"
    first.kill()
    second.starts = 11
    second.start()
    second.stop()
    second.starts = 1


def test_start_with_port_in_use(make_daemon):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(make_daemon(server={"bind": [address]}), address, "in use")


def test_start_with_foreign_address(make_daemon):
    refused(make_daemon(server={"bind": ["192.0.2.1:0"], "allow_plain_http": True}), "192.0.2.1:0")


def tls(folder, **more):
    names = {"tls_certificate": "server.pem", "tls_key": "server.key", **more}
    return {name: str(folder / file) for name, file in names.items()}


@pytest.fixture
def certificates(tmp_path):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = ca.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    ca.issue_cert("other").private_key_pem.write_to_path(tmp_path / "other.key")
    (tmp_path / "text").write_text("this is no certificate\n")
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-passout", "pass:x", "-in", tmp_path / "server.key", "-out", encrypted],
        check=True,
        capture_output=True,
    )
    return tmp_path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tls_certificate": "absent.pem"}, ["absent.pem", "No such file"]),
        ({"tls_key": "absent.key"}, ["absent.key", "No such file"]),
        ({"client_ca": "absent.pem"}, ["absent.pem", "No such file"]),
        ({"tls_certificate": "text"}, ["text", "TLS"]),
        ({"tls_key": "other.key"}, ["other.key", "mismatch"]),
        ({"tls_key": "encrypted.key"}, ["encrypted.key", "TLS"]),
        ({"client_ca": "text"}, ["text", "TLS"]),
    ],
)
def test_start_with_invalid_tls_files(make_daemon, certificates, change, words):
    refused(make_daemon(server=tls(certificates, **change)), *words)


def test_start_with_file_as_state_directory(make_daemon):
    daemon = make_daemon()
    daemon.folder.mkdir()
    (daemon.folder / "state").write_text("")
    refused(daemon, str(daemon.folder / "state"))


def test_log_names_the_configuration(make_daemon):
    daemon = make_daemon().start()
    (line,) = [line for line in daemon.log_file.read_text().splitlines() if '"starting"' in line]
    assert json.loads(line)["configuration"] == str(daemon.folder / "config.toml")


def test_start_with_damaged_database(make_daemon):
    """The service starts without a history, keeps the file, and logs that."""
    daemon = make_daemon()
    (daemon.folder / "state").mkdir(parents=True)
    (daemon.folder / "state" / "jobs.sqlite").write_text("this is no database, and long enough to be sure of it\n" * 99)
    daemon.start()
    assert daemon.call("GET", "/api/v1/jobs").json()["count"] == 0
    assert [path for path in (daemon.folder / "state").iterdir() if re.match(r"jobs\.sqlite\..*damaged", path.name)]
    assert any("jobs.sqlite" in line and "damaged" in line for line in daemon.log_file.read_text().splitlines())


def test_start_with_damaged_token_file(make_daemon):
    daemon = make_daemon(auth={"client_token": "/nonexistent/x"})
    del daemon.config["auth"]["client_token"]
    (daemon.folder / "state").mkdir(parents=True)
    (daemon.folder / "state" / "tokens.json").write_text("{")
    daemon.start()
    (daemon.folder / "client-token").write_text("x")
    assert daemon.call("GET", "/health").status_code == 200
    assert daemon.call("GET", "/api/v1/jobs").status_code in {401, 500}
    daemon.kill()
    daemon.starts = 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["No such file"]),
        ("[server\n", ["TOML"]),
        ("[servr]\n", ["servr", "server"]),
        ('[targets.x]\nplugin = "nothing"\n', ["nothing"]),
        (
            '[server]\nbind = ["0.0.0.0:1"]\n[targets.x]\nplugin = "file"\ndirectory = "/x"\n',
            ["0.0.0.0:1", "plain HTTP"],
        ),
    ],
)
def test_start_with_invalid_configuration(tmp_path, text, words):
    file = tmp_path / "config.toml"
    if text is not None:
        file.write_text(text)
    done = subprocess.run([*LVP, "serve", "--config", file], capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_start_with_passed_socket(make_daemon, tmp_path):
    """The daemon serves the passed socket instead of ``bind`` and notifies systemd of its state."""
    with socket.create_server(("127.0.0.1", 0)) as passed, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(90)
        daemon = make_daemon()
        daemon.folder.mkdir()
        file = daemon.folder / "config.toml"
        file.write_text(tomli_w.dumps(daemon.config))
        command = [sys.executable, "-c", HAND_OVER, str(passed.fileno()), *LVP, "serve", "--config", str(file)]
        daemon.starts = 1
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with daemon.log_file.open("wb") as log:
            daemon.process = subprocess.Popen(command, stderr=log, env=environment, pass_fds=[passed.fileno()])
        said = []

        def receives(word):
            return until(lambda: said.append(manager.recv(1000).decode()) or word in said[-1].splitlines())

        assert receives("READY=1")
        daemon.url = f"http://127.0.0.1:{passed.getsockname()[1]}"
        assert daemon.call("GET", "/health").json()["status"] == "healthy"
        assert receives("WATCHDOG=1")
        assert daemon.stop() == 0
        assert receives("STOPPING=1")
