"""A guest ends with the harness that started it, even if that is killed: no process and no file is left."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.guest.harness import Images

CHECKOUT = Path(__file__).resolve().parents[3]
TIMEOUT = 120  # seconds; the limit only ends a test that hangs
HARNESS = """
import sys, time
from tests.guest.harness import Guest
with Guest(user_mode=sys.argv[1] == "user-mode") as guest:
    guest.power_on()
    print(guest.directory, flush=True)
    time.sleep(1000)
"""


def processes_of(folder: str) -> list[str]:
    """Return the processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder.encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.parametrize("kind", ["qemu", "user-mode"])
def test_killed_harness_leaves_nothing(images: Images, kind: str) -> None:
    command = [sys.executable, "-c", HARNESS, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as harness:
        assert harness.stdout
        folder = harness.stdout.readline().strip()
        assert processes_of(folder)
        harness.kill()
    stop = time.monotonic() + TIMEOUT
    while processes_of(folder) or Path(folder).exists():
        assert time.monotonic() < stop, (processes_of(folder), folder)
        time.sleep(0.05)
