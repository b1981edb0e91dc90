"""A clean run leaves nothing behind, even if it is killed: no process, mount, loop device, control group or folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clean.session import PREFIX, Session, remove_leftovers
from tests.guest.harness.cache import cache_directory

CHECKOUT = Path(__file__).resolve().parents[3]
# Loop devices on a file in /tmp and on one in /root, a mount, and a process in its own session.
BUSY = "truncate -s 1M /tmp/lvp-bound /root/lvp-over; losetup -f /tmp/lvp-bound; losetup -f /root/lvp-over;"
BUSY += "mount -t tmpfs lvp-left /mnt; setsid sleep 86399 & echo busy;"
WAITING = f"""
from pathlib import Path
from tests.clean.session import Session
with Session([Path("/")]) as session:
    session.run(["sh", "-ec", "{BUSY} sleep 86399"])
"""


def left(name):
    """Return everything that is left of the session whose folder is ``name``."""
    loops = subprocess.run(["losetup", "--list", "-n"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/self/mounts").read_text()
    groups = [path.name for path in Path(groups_at()).glob(f"lvp-{name}")]
    processes = subprocess.run(["pgrep", "-f", "sleep 86399"], capture_output=True, text=True, check=False).stdout
    return {
        "loops": [line for line in loops.splitlines() if "/lvp-bound" in line or "/lvp-over" in line],
        "mounts": [line for line in mounts.splitlines() if "lvp-left" in line],
        "groups": groups,
        "processes": processes.split(),
        "folders": [path.name for path in cache_directory("clean").glob(f"{PREFIX}*")],
    }


def groups_at():
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return next(where for _, where, kind, *_ in mounts if kind == "cgroup2")


NOTHING: dict[str, list[str]] = {name: [] for name in ("loops", "mounts", "groups", "processes", "folders")}


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    """A separate cache beside the real one. In a clean run /tmp and /root are overlays, but this folder is not."""
    place = cache_directory().parent / "test-clean-session"
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    yield
    shutil.rmtree(place)


def test_session_leaves_nothing():
    with Session([Path("/")]) as session:
        assert session.run(["sh", "-ec", f"{BUSY} exit 7"]) == 7
    assert left(session.scratch.name) == NOTHING
    assert not Path("/root/lvp-over").exists()


def test_leftovers_of_a_killed_session():
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as killed:
        assert killed.stdout
        assert killed.stdout.readline() == "busy\n"
        (folder,) = cache_directory("clean").glob(f"{PREFIX}*")
        killed.kill()
        assert killed.stdout.read() == ""  # all processes of the session have ended
    remove_leftovers()
    assert left(folder.name) == NOTHING
