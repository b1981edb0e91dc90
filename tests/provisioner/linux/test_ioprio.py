"""Tests that `ionice` reports the I/O class for the process, its threads, and the programs they start."""

import subprocess
import sys

import pytest

from provisioner.config import parse
from provisioner.contracts.errors import ConfigError

CODE = """
import subprocess, sys, threading
from provisioner.linux import ioprio
ioprio.apply(sys.argv[1])
ask = lambda pid: print(subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True, check=True).stdout)
thread = threading.Thread(target=lambda: (ask(threading.get_native_id()), ask(0)))
thread.start()
thread.join()
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
ask(child.pid)
child.communicate()
"""


@pytest.mark.parametrize(
    ("io_class", "said"), [("idle", "idle"), ("best-effort:7", "best-effort: prio 7"), ("none", "none: prio 0")]
)
def test_apply_covers_threads_and_programs(io_class, said):
    ran = subprocess.run([sys.executable, "-c", CODE, io_class], check=True, capture_output=True, text=True)
    assert ran.stdout.split("\n\n")[:-1] == [said] * 3


@pytest.mark.parametrize("io_class", ["best-effort", "best-effort:8", "realtime:0", ""])
def test_config_rejects_invalid_io_class(io_class):
    with pytest.raises(ConfigError, match=r"jobs\.io_class"):
        parse({"jobs": {"io_class": io_class}, "targets": {"main": {"plugin": "file"}}}, "config")
