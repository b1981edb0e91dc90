"""Tests of the priority that the kernel reports for the loop's thread, another thread, and a child process."""

import subprocess
import sys

CODE = """
import os, subprocess, sys, threading
from provisioner.linux import loop_priority
os.setpriority(os.PRIO_PROCESS, 0, 0)  # whatever priority the tests have
exec(sys.argv[1])
print(loop_priority.raise_priority())
ask = lambda pid=0: print(os.getpriority(os.PRIO_PROCESS, pid))
ask()
thread = threading.Thread(target=ask)
thread.start()
thread.join()
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
ask(child.pid)
child.communicate()
"""


def said(first: str = "") -> list[str]:
    ran = subprocess.run([sys.executable, "-c", CODE, first], check=True, capture_output=True, text=True)
    return [line for line in ran.stdout.splitlines() if "no priority" not in line]


def test_raise_priority_of_the_loop_only() -> None:
    assert said() == ["True", "-10", "0", "0"]


def test_raise_priority_when_already_high() -> None:
    assert said("os.nice(-15)") == ["False", "-15", "-15", "-15"]


def test_raise_priority_without_permission() -> None:
    assert said("os.setuid(65534)") == ["False", "0", "0", "0"]
