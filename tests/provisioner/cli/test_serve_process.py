"""Tests of ``lvp serve`` as a process, with the client commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys


def test_client_finds_token_of_local_server(run, home, monkeypatch):
    """The client finds the token that the server leaves in its default data directory."""
    monkeypatch.setattr("provisioner.cli.paths.data_dir", lambda: home)
    arguments = ["serve", "--data-dir", str(home), "--bind", "127.0.0.1:0", "--log-format", "json"]
    command = [sys.executable, "-m", "provisioner.cli", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = next(line["bind"][0] for line in map(read_log, server.stderr) if line.get("event") == "ready")
            monkeypatch.setenv("LVP_URL", url)
            assert run("health").out.startswith("healthy, version ")
            assert run("job", "list") == (0, "JOB  STATUS  PROGRESS  VOLUME  CREATED  IMAGE\n", "")
            refused = run("job", "submit", "http://elsewhere.example/x.qcow2", "web-01", "1", "--wait")
            assert refused.status == 4
            assert "nothing was fetched" in refused.err
            assert run("job", "list", "--token", "wrong").status == 4
        finally:
            server.send_signal(signal.SIGTERM)
            server.stderr.read()
    assert server.returncode == 0


def read_log(line):
    return json.loads(line) if line.startswith("{") else {}
