"""The real daemon with volumes on XFS and btrfs."""

import pytest

from provisioner.contracts import GIB
from tests.end_to_end.conftest import same
from tests.end_to_end.daemon import until
from tests.reflink.conftest import FILE_SYSTEMS, in_memory, mounted

pytestmark = pytest.mark.slow  # a real daemon


@pytest.fixture(params=FILE_SYSTEMS)
def volumes(request):
    """A folder on a file system with reflinks. Volumes of 1 GiB fit, since they are sparse."""
    with in_memory() as folder, mounted(request.param, folder, 4 * GIB) as mount:
        yield mount


def test_kill_while_the_base_is_made(volumes, make_daemon, server, images):
    """The half base goes at the next start; the job makes a whole one, and others clone it."""
    table = {"plugin": "file", "directory": str(volumes)}
    daemon = make_daemon(targets={"files": table}).start()
    server.held = {"plain.qcow2": 20 * 2**20}
    first = daemon.submit(server.of("plain.qcow2"), "web-01")
    assert server.holding.wait(60)
    until(lambda: [path for path in (volumes / ".lvp/stage").glob("*base-*") if path.stat().st_blocks > 2**14])
    assert list((volumes / ".lvp").glob("base/*")) == []
    daemon.kill()
    server.let_go.set()
    daemon.start()
    jobs = [daemon.job_ended(job_id) for job_id in (first, daemon.submit(server.of("plain.qcow2"), "web-02"))]
    assert [(job["status"], job["volume"]["provisioned_by"]) for job in jobs] == [("completed", "clone")] * 2
    assert all(same(images["plain.qcow2"], volumes / f"{name}.raw") for name in ("web-01", "web-02"))
    assert list((volumes / ".lvp/stage").iterdir()) == []
    (base,) = (volumes / ".lvp/base").iterdir()
    assert any(base.name in event["decision"] for event in daemon.events("recovered"))
    planned = daemon.lvp("job", "submit", server.of("plain.qcow2"), "web-03", "1", "--dry-run")
    assert "by clone" in planned.out, planned
    found = daemon.lvp("doctor", "--config", daemon.folder / "config.toml")
    assert "volumes are cloned; 1 bases of at most 20" in found.out, found


def test_why_volumes_are_copied(make_daemon, server):
    """On a file system without reflinks, the log, the dry run and the doctor say so."""
    with in_memory() as folder:
        daemon = make_daemon(targets={"files": {"plugin": "file", "directory": str(folder)}}).start()
        reason = f"the file system of {folder} does not support reflinks"
        planned = daemon.lvp("job", "submit", server.of("plain.qcow2"), "web-01", "1", "--dry-run")
        assert f"by copy ({reason}" in planned.out, planned
        job = daemon.job_ended(daemon.submit(server.of("plain.qcow2"), "web-01"))
        assert (job["status"], job["volume"]["provisioned_by"]) == ("completed", "copy")
        (said,) = daemon.events("the volume is copied, not cloned")
        assert said["reason"].startswith(reason)
        assert "volumes are copied" in daemon.lvp("doctor", "--config", daemon.folder / "config.toml").out
