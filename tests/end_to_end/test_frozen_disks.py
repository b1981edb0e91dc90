"""A daemon on file systems that stop answering (``fsfreeze``): what it says meanwhile, and what is true afterwards.

Needs root. A process that writes to a frozen file system hangs in the kernel, as on a disk whose controller resets.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager, suppress

import httpx
import pytest

from tests.end_to_end.conftest import MIB
from tests.end_to_end.daemon import Daemon, plain_config, until
from tests.reflink.conftest import mounted, run

pytestmark = pytest.mark.slow

PARTS = ("state", "cache", "volumes")
# Seconds: no answer of the daemon may take longer, whichever disk hangs. Its own limits are 10.
ANSWER = 40.0


class Disk:
    """A file system of its own that can be frozen."""

    def __init__(self, mount):
        self.mount = mount
        self.is_frozen = False

    def freeze(self):
        run("fsfreeze", "--freeze", self.mount)
        self.is_frozen = True

    def thaw(self):
        if self.is_frozen:
            run("fsfreeze", "--unfreeze", self.mount)
            self.is_frozen = False


@contextmanager
def frozen(disk):
    disk.freeze()
    try:
        yield
    finally:
        disk.thaw()


@pytest.fixture(params=PARTS)
def part(request):
    return request.param


@pytest.fixture
def disk(part, tmp_path):
    with mounted("ext4", tmp_path, 512 * MIB) as mount:
        disk = Disk(mount)
        try:
            yield disk
        finally:
            disk.thaw()


@pytest.fixture
def daemon(part, disk, tmp_path):
    """A daemon with one part of its data on the disk."""
    folders = {name: tmp_path / name for name in PARTS} | {part: disk.mount / part}
    config = plain_config(tmp_path, cache={"directory": str(folders["cache"])})
    config["state_directory"] = str(folders["state"])
    config["targets"]["files"]["directory"] = str(folders["volumes"])
    made = Daemon(tmp_path / "daemon", config)
    config["auth"]["client_token"] = str(made.folder / "client-token")
    try:
        yield made.start()
    finally:
        disk.thaw()
        if made.process.poll() is None:
            made.kill()


def call(daemon, method, path, **options):
    """Send a request that must be answered in time, with an error or not."""
    started = time.monotonic()
    headers = {"X-API-Token": daemon.token} | options.pop("headers", {})
    options = {"timeout": ANSWER, "headers": headers, **options}
    answer = httpx.request(method, daemon.url + path, trust_env=False, **options)
    assert time.monotonic() - started < ANSWER
    return answer


def body(url, name="web01"):
    return {"image_url": url, "volume_name": name, "volume_size_gb": 1, "image_type": "raw"}


def not_ready(daemon):
    answer = call(daemon, "GET", "/readyz")
    return answer.status_code == 503 and answer.text


NAMED = {"state": "job store", "cache": "cache", "volumes": "target 'files'"}


def test_frozen_disk_is_named_and_the_rest_answers(daemon, disk, part):
    """Readiness names the part, everything that does not need it answers, and it is ready again by itself."""
    with frozen(disk):
        reasons = until(lambda: not_ready(daemon))
        assert NAMED[part] in reasons
        assert call(daemon, "GET", "/livez").status_code == 200
        assert call(daemon, "GET", "/metrics").status_code == 200
        for path in ("jobs", "cache/images", "volumes"):
            assert call(daemon, "GET", f"/api/v1/{path}").status_code in {200, 503}
    until(lambda: call(daemon, "GET", "/readyz").status_code == 200)


def test_job_during_a_freeze_is_refused_or_completed(daemon, disk, part, server, images):
    """What was answered with 202 completes once the disk answers; what was answered with 503 never existed."""
    with frozen(disk):
        answer = call(daemon, "POST", "/api/v1/jobs", json=body(server.of("full.raw")))
        assert answer.status_code == (503 if part == "state" else 202), answer.text
        until(lambda: not_ready(daemon))
    until(lambda: call(daemon, "GET", "/readyz").status_code == 200)
    if part == "state":
        assert call(daemon, "GET", "/api/v1/jobs").json()["count"] == 0
        answer = call(daemon, "POST", "/api/v1/jobs", json=body(server.of("full.raw")))
    assert daemon.job_ended(answer.json()["job_id"])["status"] == "completed"
    volume = next(iter(disk.mount.parent.rglob("web01.raw")))
    raw = images["full.raw"].raw.read_bytes()
    with volume.open("rb") as file:
        assert file.read(len(raw)) == raw
    assert daemon.children() == []
    daemon.kill()
    daemon.start()
    assert call(daemon, "GET", "/api/v1/jobs").json()["count"] == 1


@pytest.mark.parametrize("part", ["state"], indirect=True)
def test_killed_between_refusal_and_withdrawal(daemon, disk, server):
    """The one case in which a refused job may exist: with its key, a repeated request never makes a second one."""
    key = {"Idempotency-Key": "the-one"}
    with frozen(disk):
        answer = call(daemon, "POST", "/api/v1/jobs", json=body(server.of("full.raw")), headers=key)
        assert answer.status_code == 503, answer.text
        daemon.process.kill()  # ends once its thread returns from the disk
    daemon.process.wait(ANSWER)
    daemon.start()
    answer = call(daemon, "POST", "/api/v1/jobs", json=body(server.of("full.raw")), headers=key)
    assert answer.status_code in {200, 202}, answer.text
    assert daemon.job_ended(answer.json()["job_id"])["status"] == "completed"
    assert call(daemon, "GET", "/api/v1/jobs").json()["count"] == 1


@pytest.mark.parametrize("part", ["cache", "volumes"], indirect=True)
def test_cancel_during_a_freeze(daemon, disk, server):
    """Even if the client does not wait, nothing is left of the job after the freeze, and its name is free."""
    with frozen(disk):
        job = call(daemon, "POST", "/api/v1/jobs", json=body(server.of("full.raw"))).json()["job_id"]
        until(lambda: daemon.job(job)["status"] == "running")
        with suppress(httpx.ReadTimeout):
            call(daemon, "POST", f"/api/v1/jobs/{job}/cancel", timeout=3)
    assert daemon.job_ended(job)["status"] == "cancelled"
    until(lambda: call(daemon, "GET", "/readyz").status_code == 200)
    assert not list(disk.mount.parent.rglob("web01*"))
    answer = call(daemon, "POST", "/api/v1/jobs", json=body(server.of("full.raw")))
    assert daemon.job_ended(answer.json()["job_id"])["status"] == "completed"


def test_stop_during_a_freeze(daemon, disk):
    """SIGTERM ends the daemon once the disk answers, if not before, and the next start is ready."""
    with frozen(disk):
        daemon.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            daemon.process.wait(2)
    daemon.process.wait(ANSWER)
    daemon.start()
    assert call(daemon, "GET", "/readyz").status_code == 200
