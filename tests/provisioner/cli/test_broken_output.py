"""Tests of unwritable output or disks: every command prints one sentence and returns a status, without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a new process for each command

FULL_DEVICE = Path("/dev/full")
LVP = [sys.executable, "-m", "provisioner.cli"]
COMMANDS = [
    ["--help"],
    ["--version"],
    ["job", "list"],
    ["job", "list", "--json"],
    ["volume", "list"],
    ["cache", "list"],
    ["health"],
    ["plugins"],
    ["config", "show", "--defaults"],
    ["token", "create", "ci", "--token-file", "tokens.json"],
    ["doctor", "--data-dir", "data"],
]


@pytest.fixture
def environment(home, server, monkeypatch):
    monkeypatch.chdir(home)  # for relative files; as root, the default ones would be the host's
    server.on("GET", "/api/v1/jobs", "JobListPage")
    server.on("GET", "/api/v1/volumes", "VolumePage")
    server.on("GET", "/api/v1/cache/images", "CachedImagePage")
    server.on("GET", "/health", "HealthHealthy")
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**buffered, "LVP_URL": server.url, "LVP_TOKEN": "s3cret"}


def end(command, environment, out, err=subprocess.PIPE):
    return subprocess.run([*LVP, *command], stdout=out, stderr=err, text=True, env=environment, timeout=60, check=False)


def one_sentence(done, words):
    assert done.returncode == 1, done.stderr
    assert done.stderr == f"Error: standard output cannot be written: {words}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_output_to_full_disk(command, environment):
    with FULL_DEVICE.open("w") as full:
        one_sentence(end(command, environment, full), "No space left on device")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["--help"], ["job", "list"]], ids=" ".join)
def test_output_to_closed_pipe(command, environment, unbuffered):
    environment = {**environment, "PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = end(command, environment, writer)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        os.close(writer)


def test_completion_to_full_disk(environment):
    completing = {**environment, "_LVP_COMPLETE": "bash_source"}
    with FULL_DEVICE.open("w") as full:
        code = "import sys; sys.argv[0] = 'lvp'; from provisioner.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=completing, check=False
        )
    one_sentence(done, "No space left on device")


@pytest.mark.parametrize("command", [["--no-such-option"], ["config", "check", "/none"]], ids=" ".join)
def test_error_to_full_disk(command, environment):
    """The exit status is still correct."""
    with FULL_DEVICE.open("w") as full:
        done = end(command, environment, full, full)
    assert done.returncode == (2 if command[0].startswith("--") else 1)


def test_token_create_to_full_disk(environment):
    with FULL_DEVICE.open("w") as full:
        end(["token", "create", "ci", "--token-file", "tokens.json"], environment, full)
    listed = end(["token", "list", "--token-file", "tokens.json"], environment, subprocess.PIPE)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "ci" not in listed.stdout


FULL = """
import os, subprocess, sys
folder = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
with open(os.path.join(folder, "filler"), "wb") as filler:
    filler.write(bytes(64 * 1024))
sys.exit(subprocess.run([sys.executable, "-m", "provisioner.cli", *sys.argv[2:]]).returncode)
"""


@pytest.mark.parametrize("command", [["token", "create", "ci"], ["token", "rotate-key"]], ids=" ".join)
def test_full_state_disk(command, environment, tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", FULL, folder, *command,
         "--token-file", folder / "tokens.json"],
        capture_output=True, text=True, env=environment, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {folder}/")
    assert line.endswith(": No space left on device")
