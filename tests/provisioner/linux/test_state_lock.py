"""Tests that only one process can use a state directory."""

import os
import subprocess
import sys

import pytest

from provisioner.contracts.errors import ConfigError
from provisioner.linux import state_lock

HOLD = """
import sys, pathlib
from provisioner.linux import state_lock
with state_lock.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_locked_names_the_holder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigError, match=rf"another instance \(process {holder.pid}\)"),
            state_lock.locked(tmp_path / "state"),
        ):
            pass
        holder.kill()
        holder.wait()
    with state_lock.locked(tmp_path / "state"):  # a kill needs no cleanup
        assert (tmp_path / "state" / "lock").read_text() == f"{os.getpid()}\n"


def test_locked_with_unusable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"state directory .*file/state cannot be used"),
        state_lock.locked(tmp_path / "file" / "state"),
    ):
        pass
