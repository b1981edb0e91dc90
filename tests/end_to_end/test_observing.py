"""Tests of the real daemon while its log, audit log, configuration or state disk is blocked: it answers and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w

from tests.end_to_end.daemon import LVP, TIMEOUT, until

pytestmark = pytest.mark.slow
# Seconds. Both writers get two seconds for their last lines; the rest is for a busy machine.
END = 40.0


def fill(path_or_fd):
    """Write to the pipe until it is full."""
    fd = os.open(path_or_fd, os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(fd, b"\n" * 4096)
    with suppress(BlockingIOError):
        while True:
            os.write(fd, b"\n")
    os.close(fd)


def test_configuration_that_is_a_pipe(daemon):
    """The reload fails if the file is a pipe without a writer; a later reload and SIGTERM still work."""
    file = daemon.folder / "config.toml"
    text = file.read_text()
    file.unlink()
    os.mkfifo(file)
    daemon.process.send_signal(signal.SIGHUP)
    refused = until(lambda: daemon.event("the new configuration is invalid; the old one stays in force"))
    assert refused["reason"] == f"{file}: cannot be read: not a regular file"
    file.unlink()
    file.write_text(text)
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.event("reloaded"))
    assert daemon.stop() == 0


def test_standard_error_that_is_not_read(make_daemon):
    """Requests, jobs and the shutdown do not wait for the pipe, which is full from the ready line on."""
    daemon = make_daemon(cache={"download_attempts": 1})
    daemon.folder.mkdir()
    file = daemon.folder / "config.toml"
    file.write_text(tomli_w.dumps(daemon.config))
    daemon.starts = 1
    daemon.log_file.write_text("")
    reader, writer = os.pipe()
    daemon.process = subprocess.Popen([*LVP, "serve", "--config", str(file)], stderr=writer, env=daemon.environment)
    with os.fdopen(reader) as log:
        for line in log:
            if line.startswith("{") and (event := json.loads(line))["event"] == "ready":
                break
        fill(f"/proc/self/fd/{writer}")
        daemon.url = event["bind"][0]
        for number in range(3):
            daemon.submit("http://127.0.0.1:1/none.qcow2", f"v{number}")
        for job in daemon.call("GET", "/api/v1/jobs").json()["jobs"]:
            daemon.job_ended(job["job_id"])
        assert daemon.call("GET", "/health").status_code == 200
        expected = "the log (stderr) has accepted nothing for "
        until(lambda: any(one.startswith(expected) for one in daemon.call("GET", "/readyz").json().get("warnings", ())))
        started = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - started < END
    os.close(writer)


def test_audit_pipe_that_is_not_read(make_daemon, tmp_path):
    """Requests are answered, /readyz warns, and the shutdown is in time."""
    pipe = tmp_path / "audit.pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    daemon = make_daemon(audit={"file": str(pipe)}).start()
    fill(pipe)
    assert daemon.call("POST", "/api/v1/jobs", {}).status_code == 400
    warning = until(lambda: daemon.call("GET", "/readyz").json().get("warnings"))
    assert warning[0].startswith(f"the audit log {pipe} has accepted nothing for ")
    started = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(TIMEOUT) == 0
    assert time.monotonic() - started < END
    assert daemon.event("the audit log cannot be written; its last lines are lost")
    os.close(reader)


MOUNTED = """
import os, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", sys.argv[1]], check=True)
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_full_state_disk(make_daemon):
    """A submit gets 503, /readyz gives the reason, and both recover by themselves."""
    daemon = make_daemon()
    state = daemon.folder / "state"
    state.mkdir(parents=True)
    file = daemon.folder / "config.toml"
    file.write_text(tomli_w.dumps(daemon.config))
    daemon.starts = 1
    alone = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", MOUNTED, str(state)]
    with daemon.log_file.open("wb") as log:
        command = [*alone, *LVP, "serve", "--config", str(file)]
        daemon.process = subprocess.Popen(command, stderr=log, env=daemon.environment)
    daemon.url = until(lambda: daemon.event("ready"))["bind"][0]
    assert daemon.call("GET", "/readyz").status_code == 200
    filler = Path(f"/proc/{daemon.pid}/root{state}/filler")  # the disk as the daemon sees it
    with filler.open("wb", buffering=0) as full, suppress(OSError):
        while True:
            full.write(bytes(4096))
    body = {"image_url": "http://127.0.0.1:1/none.raw", "volume_name": "v", "volume_size_gb": 1, "image_type": "raw"}
    assert daemon.call("POST", "/api/v1/jobs", body).status_code == 503
    refused = until(lambda: (answer := daemon.call("GET", "/readyz")).status_code == 503 and answer.json())
    assert f"state directory {state} cannot be written: No space left on device" in refused["reasons"]
    filler.unlink()
    until(lambda: daemon.call("GET", "/readyz").status_code == 200)
    assert daemon.call("POST", "/api/v1/jobs", body).status_code == 202
