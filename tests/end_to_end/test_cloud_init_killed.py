"""The real daemon is killed at each change of a file that a job with a cloud-init seed makes, and started again.

A hook in the daemon's Python kills it right before a rename, link, removal or attribute, so no test depends on time.
"""

from __future__ import annotations

import signal
from contextlib import suppress

import httpx
import pytest

from tests.end_to_end.daemon import until
from tests.end_to_end.test_cloud_init import places_of, volume_files
from tests.servers.seeds import files_of

IMAGES = ("sparse.raw", "full.raw")
pytestmark = pytest.mark.slow
# Kills the process before change number N of a volume's file, once the file that LVP_KILL names contains N.
HOOK = """
import os, signal, sys
changes, arm = 0, os.environ["LVP_KILL"]
kinds = {"os.rename", "os.link", "os.remove", "os.setxattr"}
def hook(event, args):
    global changes
    if event in kinds and (event == "os.setxattr" or any("web-01" in str(one) for one in args)):
        try:
            fd = os.open(arm, os.O_RDONLY)
        except FileNotFoundError:
            return
        number = int(os.read(fd, 9))
        os.close(fd)
        changes += 1
        if changes == number:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""


@pytest.fixture
def killable(make_daemon, tmp_path):
    """Return a function that makes a daemon, and the file that arms its hook."""

    def make(on_restart) -> tuple:
        (tmp_path / "hook").mkdir()
        (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
        arm = tmp_path / "arm"
        daemon = make_daemon(jobs={"on_restart": on_restart, "max_attempts": 100, "max_concurrent": 1})
        daemon.environment |= {"PYTHONPATH": str(tmp_path / "hook"), "LVP_KILL": str(arm)}
        return daemon, arm

    return make


def content(daemon, images):
    """Return the name of the volume's image and the seed's user data; None if there is neither."""
    volume, seed = daemon.volume("web-01"), daemon.volume("web-01-seed")
    assert volume.exists() == seed.exists(), volume_files(daemon)
    if not volume.exists():
        return None
    names = [name for name in IMAGES if start_of(images[name].raw) == start_of(volume)]
    return *names, files_of(seed, "-R")["user-data"]


def start_of(file):
    with file.open("rb") as data:
        return data.read(8 * 2**20)


def until_dead_or_ended(daemon, job_id):
    """Return whether the daemon died before the job ended."""

    def dead():
        return daemon.process.poll() is not None

    def ended():
        try:
            return daemon.job(job_id)["status"] in {"completed", "failed"}
        except httpx.TransportError:
            return False

    until(lambda: dead() or ended())
    return dead()


def submit(daemon, server, name, data):
    return daemon.submit(server.of(name), "web-01", "raw", cloud_init={"user_data": data})


def run_armed(daemon, server, arm, number, name, data):
    """Run a job while the hook is armed; return its id. It is queued behind another one until then."""
    server.holding.clear()
    blocker = daemon.submit(server.of("plain.qcow2"), "blocker")
    assert server.holding.wait(60)
    job_id = submit(daemon, server, name, data)
    arm.write_text(str(number))
    with suppress(httpx.TransportError):  # the daemon may die before it answers
        daemon.call("POST", f"/api/v1/jobs/{blocker}/cancel")
    return job_id


@pytest.mark.parametrize("on_restart", ["fail", "retry"])
@pytest.mark.parametrize("replaces", [False, True])
def test_killed_at_every_change(killable, server, images, on_restart, replaces):
    """Volume and seed are both new or both as before, and nothing else is left: no file, no data."""
    daemon, arm = killable(on_restart)
    server.held = {"plain.qcow2": 1}
    daemon.start()
    before, number = None, 0
    if replaces:
        daemon.job_ended(submit(daemon, server, IMAGES[0], "secret-0"))
        before = (IMAGES[0], "secret-0")
    while True:
        number += 1
        new = (IMAGES[number % 2], f"secret-{number}")
        job_id = run_armed(daemon, server, arm, number, *new)
        died = until_dead_or_ended(daemon, job_id)
        arm.unlink()
        if not died:
            break
        assert daemon.process.returncode == -signal.SIGKILL
        daemon.start()
        status = daemon.job_ended(job_id)["status"]
        assert status == "completed" or (status, on_restart) == ("failed", "fail")
        if status == "completed":
            before = new
        assert content(daemon, images) == before, number
        check_clean(daemon, before)
        if not replaces and before is not None:
            daemon.volume("web-01").unlink()
            daemon.volume("web-01-seed").unlink()
            before = None
    assert number > (12 if replaces else 5)
    check_clean(daemon, new)


def check_clean(daemon, before):
    expected = {"web-01.raw", "web-01-seed.raw"} if before else set()
    until(lambda: volume_files(daemon) == expected)
    until(lambda: not places_of(daemon, "secret-"))
