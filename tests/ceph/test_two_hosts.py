"""Two daemons on two hosts with one pool: one import, clones on both, and takeover from a dead or frozen host."""

import hashlib
import os
import random
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.ceph.host import Place
from tests.end_to_end.daemon import Daemon, descendants, plain_config, until
from tests.servers.images import image_server

MIB = 2**20
SIZE = 24 * MIB
IMAGES = list(enumerate(("disk", "other")))


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for number, image in IMAGES:
        data = random.Random(number).randbytes(SIZE)
        (root / f"{image}.raw").write_bytes(data)
        (root / f"{image}.raw.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {image}.raw\n")
    with image_server(root) as running:
        yield running


@pytest.fixture
def hosts(ceph, tmp_path):
    """Return the place, and two daemons that are not started yet."""
    place = Place(ceph, tmp_path / "place")
    table = {
        "plugin": "rbd", "pool": place.pool, "namespace": place.namespace, "conf": str(ceph.conf), "user": place.user,
        "keyring": f"file:{place.keyring}", "stale_client_wait": "0s", "lease": "5s", "python": str(place.python),
    }  # fmt: skip
    daemons = []
    for name in ("one", "two"):
        folder = tmp_path / name
        daemons.append(Daemon(folder, {**plain_config(folder), "targets": {"ceph": table}}))
    yield place, *daemons
    for daemon in daemons:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.send_signal(signal.SIGCONT)
            daemon.stop()


@contextmanager
def frozen(daemon):
    """Stop a daemon and all its processes, as a host does that hangs; continue them at the end."""
    os.kill(daemon.pid, signal.SIGSTOP)
    stopped = [daemon.pid, *descendants(daemon.pid)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def assert_same(place, server, *volumes, image="disk"):
    expected = (Path(server.root) / f"{image}.raw").read_bytes()
    for name in volumes:
        assert place.extents(name) == (2**30, SIZE, expected), name


def completed(*jobs):
    for daemon, job_id in jobs:
        job = daemon.job_ended(job_id)
        assert job["status"] == "completed", job


def bases(place):
    return [name for name in place.names() if name.startswith("lvp.base.")]


def test_one_import_for_two_hosts(hosts, server):
    """Ten jobs with one new image on each host, all at once."""
    place, one, two = hosts
    jobs = {}
    for daemon, prefix in ((one.start(), "a"), (two.start(), "b")):
        for number in range(10):
            name = f"{prefix}{number}"
            jobs[name] = daemon, daemon.submit(server.of("disk.raw"), name, "raw")
    completed(*jobs.values())
    assert_same(place, server, *jobs)
    assert place.calls().count("create") == 1
    (base,) = bases(place)
    assert all(daemon.job(job_id)["volume"]["provisioned_by"] == "clone" for daemon, job_id in jobs.values())
    assert one.job(jobs["a0"][1])["volume"]["path"] == f"rbd:{place.spec}/a0"
    assert place.names() == {*jobs, base}
    # Each host sees the volumes of both, and may remove them.
    assert {volume["name"] for volume in two.call("GET", "/api/v1/volumes").json()["volumes"]} == set(jobs)
    trio.run(place.target("third").remove, "b0")
    assert "b0" not in place.names()


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_import_is_taken_over(hosts, server, how):
    """The importer writes; the other host waits for its lease, then imports. A frozen one wakes and breaks nothing."""
    place, one, two = hosts
    server.held = {"disk.raw": 8 * MIB}
    first = one.start().submit(server.of("disk.raw"), "a0", "raw")
    assert server.holding.wait(60)
    until(lambda: any(name.startswith("lvp.stage.") for name in place.names()))
    if how == "killed":
        one.kill()
    else:
        os.kill(one.pid, signal.SIGSTOP)
    server.held = {}
    second = two.start().submit(server.of("disk.raw"), "b0", "raw")
    completed((two, second))
    assert_same(place, server, "b0")
    base = bases(place)
    server.let_go.set()
    if how == "killed":
        one.start()
    else:
        os.kill(one.pid, signal.SIGCONT)
    completed((one, first))
    assert_same(place, server, "a0", "b0")
    assert bases(place) == base
    assert place.names() == {"a0", "b0", *base}


def test_importer_is_frozen_for_a_minute(hosts, server):
    """A whole host: one import is in its copy, one about to name its base. Lease and watches end meanwhile."""
    place, one, two = hosts
    server.held = {"disk.raw": 8 * MIB}
    one.start()
    two.start()
    with place.fault("rename", "before", "pause", call="publish_base") as faults:
        naming = one.submit(server.of("other.raw"), "a1", "raw")
        until((faults / "reached").exists)
        finished = place.names()
        copying = one.submit(server.of("disk.raw"), "a0", "raw")
        assert server.holding.wait(60)
        # A write or the start of an export would rightly fail for having taken a minute.
        written = (Path(server.root) / "disk.raw").read_bytes()[: 8 * MIB]
        until(lambda: any(place.extents(name)[2] == written for name in place.names() - finished))
        with frozen(one):
            since = time.monotonic()
            (faults / "plan.json").unlink()
            server.held = {}
            completed(*((two, two.submit(server.of(f"{image}.raw"), f"b{number}", "raw")) for number, image in IMAGES))
            made = {name: place.info(name)["id"] for name in ("b0", "b1", *bases(place))}
            assert len(made) == 4
            until(lambda: time.monotonic() - since > 60, seconds=70)
            server.let_go.set()
            (faults / "go").touch()
        completed((one, naming), (one, copying))
    for number, image in IMAGES:
        assert_same(place, server, f"a{number}", f"b{number}", image=image)
    assert {name: place.info(name)["id"] for name in made} == made
    assert place.names() == {"a0", "a1", *made}


def test_daemon_killed_in_commit(hosts, server):
    """The service and its call die in the middle of a swap; the other host recovers, and touches nothing of it."""
    place, one, two = hosts
    completed((one.start(), one.submit(server.of("disk.raw"), "web01", "raw")))
    with place.fault("rename", "after", "pause", call="publish") as faults:
        again = one.submit(server.of("disk.raw"), "web01", "raw")
        until((faults / "reached").exists)
        os.kill(int((faults / "reached").read_text()), signal.SIGKILL)
        one.kill()
    before = place.names()
    assert "web01" not in before
    two.start()
    assert place.names() == before
    assert any("another installation" in event["decision"] for event in two.events("recovered"))
    one.start()
    completed((one, again))
    assert_same(place, server, "web01")
    assert place.names() == {"web01", *bases(place)}
