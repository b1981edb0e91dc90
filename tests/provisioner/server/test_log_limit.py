"""Tests that log lines caused by clients are limited per address and in total, and that omitted lines are counted."""

from __future__ import annotations

import structlog.testing

from provisioner.server.log_limit import LogLimit
from tests.provisioner.tls.test_peer_certificate import tls_harness


def test_allows_limit_per_address():
    limit = LogLimit(per_address=2, total=10)
    assert [limit.allows("a", 0) for _ in range(4)] == [True, True, False, False]
    assert limit.allows("b", 0)
    assert limit.take_suppressed() == 2
    assert limit.take_suppressed() == 0


def test_allows_limit_in_total():
    limit = LogLimit(per_address=2, total=10)
    assert sum(limit.allows(f"address {number}", 0) for number in range(1000)) == 10
    assert len(limit._written) <= 11
    assert limit.take_suppressed() == 990


def test_allows_after_window():
    limit = LogLimit(per_address=1, total=1, window=60)
    assert [limit.allows("a", now) for now in (100, 159, 160)] == [True, False, True]


async def test_refused_handshakes_are_limited_in_log(tmp_path):
    """30 handshakes from one address: 20 lines in the log and in the audit log, all counted in the metrics."""
    audit = tmp_path / "audit.log"
    with structlog.testing.capture_logs() as lines:
        async with tls_harness(tmp_path, audit=audit) as tls:
            certificate = tls.stranger.issue_cert("admin.example")
            for _ in range(30):
                await tls.refused(certificate)
            text = (await tls.get(path="/metrics")).text
    refused = [line for line in lines if line["event"] == "client certificate refused"]
    assert len(refused) == 20
    assert {line["address"] for line in refused} == {"127.0.0.1"}
    (left_out,) = [line for line in lines if line["event"] == "further events were not logged"]
    assert (left_out["kind"], left_out["count"]) == ("refused handshakes", 10)
    assert 'authentication_failures_total{presented="certificate"} 30.0' in text
    assert len(audit.read_text().splitlines()) == 20
