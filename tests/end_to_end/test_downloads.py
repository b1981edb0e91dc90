"""Tests of one download for many jobs, of one that is resumed after a restart, and of slow connections."""

import hashlib

import pytest

from tests.end_to_end.conftest import same
from tests.end_to_end.daemon import until
from tests.servers.cutting import cutting_proxy
from tests.servers.nginx import nginx

pytestmark = pytest.mark.slow

MIB = 2**20


def test_twenty_jobs_share_one_download(daemon, server, images):
    ids = [daemon.submit(server.of("zlib.qcow2"), f"twin-{number}") for number in range(20)]
    ended = [daemon.job_ended(job_id) for job_id in ids]
    assert {job["status"] for job in ended} == {"completed"}
    assert server.fetched["zlib.qcow2"] == 1
    for number in (0, 7, 19):
        assert same(images["zlib.qcow2"], daemon.volume(f"twin-{number}"))


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_download_is_resumed_after_restart(make_daemon, images, tmp_path, end):
    image = images["full.raw"]
    daemon = make_daemon(
        sources={"http": {"plugin": "http", "urls": ["http://127.0.0.1:*"], "rate_limit": "6MiB"}},
        jobs={"shutdown_grace": "0s"},
    ).start()
    with (
        nginx(image.file.parent, tmp_path / "nginx") as origin,
        # The proxy only counts bytes.
        cutting_proxy(int(origin.url.rpartition(":")[2]), seed=1, cut_after=(1, 1), cut_share=0) as counter,
    ):
        job_id = daemon.submit(f"http://127.0.0.1:{counter.port}/full.raw", "web01", "raw")
        until(lambda: counter.passed > 28 * MIB)
        getattr(daemon, end)()
        daemon.config["sources"]["http"].pop("rate_limit")
        before = counter.passed
        daemon.start()
        assert daemon.job_ended(job_id)["status"] == "completed"
        (carried_on,) = daemon.events("resuming an earlier download")
        assert carried_on["at_byte"] >= 4 * MIB  # the rest was still in sockets
        # The second daemon downloaded only the rest (besides headers and the checksum file).
        assert counter.passed - before < image.file.stat().st_size - carried_on["at_byte"] + MIB // 8
    assert same(image, daemon.volume("web01"))


def test_slow_connections_are_helped(make_daemon, images, tmp_path):
    """A server that limits each connection is asked for several ranges; a kill then leaves a beginning to resume."""
    image = images["full.raw"]
    with nginx(image.file.parent, tmp_path / "nginx") as origin:
        source = {"plugin": "http", "urls": [f"{origin.tls_url}/"], "ca_file": str(origin.ca_file)}
        daemon = make_daemon(sources={"http": source}).start()
        size = image.file.stat().st_size
        digest = f"sha256:{hashlib.sha256(image.file.read_bytes()).hexdigest()}"
        job_id = daemon.submit(f"{origin.tls_url}/full.raw?rate=2m", "web01", "raw", checksum=digest)
        until(lambda: len(daemon.events("tried further connections")) == 2)
        tries = daemon.events("tried further connections")
        daemon.kill()
        daemon.start()
        assert daemon.job_ended(job_id)["status"] == "completed"
        (carried_on,) = daemon.events("resuming an earlier download")
    assert [tried["connections"] for tried in tries] == [2, 4]
    assert 4 * MIB < carried_on["at_byte"] < size
    assert same(image, daemon.volume("web01"))
