"""Tests of two daemons with different state directories and the same volumes."""

from __future__ import annotations

import pytest

from tests.end_to_end.conftest import same
from tests.end_to_end.daemon import until

pytestmark = pytest.mark.slow


def staged(daemon):
    return {name for name in daemon.files() if name.startswith("volumes/.lvp/stage/")}


def test_second_daemon_spares_first(make_daemon, server, images):
    """While the first runs, and while it is down with an unfinished job."""
    first = make_daemon("one").start()
    second = make_daemon("two", targets=first.config["targets"])
    server.held = {"full.raw": 2**20}
    job_id = first.submit(server.of("full.raw"), "web-01", "raw")
    assert server.holding.wait(60)
    before = until(lambda: staged(first))
    second.start()
    refused = second.job_ended(second.submit(server.of("zlib.qcow2"), "web-02"))
    assert refused["status"] == "failed"
    assert "is in use by another installation (process" in refused["error"]
    assert staged(first) == before
    first.kill()
    done = second.job_ended(second.submit(server.of("zlib.qcow2"), "web-02"))
    assert done["status"] == "completed", done
    assert any("it belongs to another installation" in event["decision"] for event in second.events("recovered"))
    assert staged(first) == before
    assert second.stop() == 0
    server.let_go.set()
    first.start()
    assert first.job_ended(job_id)["status"] == "completed"
    assert same(images["full.raw"], first.volume("web-01"))
    assert staged(first) == set()
