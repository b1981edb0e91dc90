"""A daemon sends the traces of its jobs to a collector, which may be down or slow."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.end_to_end.daemon import until
from tests.servers.threaded import ThreadedServer

pytestmark = pytest.mark.slow
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OBSERVER = {"traces": {"plugin": "otel"}}


@contextmanager
def collector():
    """Yield the url of an OTLP collector and the spans that it has received."""
    spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = ExportTraceServiceRequest.FromString(body)
            spans.extend(one for found in request.resource_spans for scope in found.scope_spans for one in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_words):
            pass

    server = ThreadedServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def submit(daemon, url, name, traceparent):
    headers = {"X-API-Token": daemon.token, "traceparent": traceparent}
    body = {"image_url": url, "volume_name": name, "volume_size_gb": 1}
    answer = httpx.post(f"{daemon.url}/api/v1/jobs", json=body, headers=headers, trust_env=False, timeout=60)
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


def test_trace_reaches_the_collector(make_daemon, server):
    """Also of a job that was interrupted by kill -9, with the parent of its request."""
    with collector() as (url, spans):
        daemon = make_daemon("t", observers=OBSERVER)
        daemon.environment = {**daemon.environment, "OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        daemon.start()
        server.held["plain.qcow2"] = 256 * 1024
        job_id = submit(daemon, server.of("plain.qcow2"), "web-01", PARENT)
        until(server.holding.is_set)
        daemon.kill()
        server.let_go.set()
        daemon.start()
        assert daemon.job_ended(job_id)["status"] == "completed"
        until(lambda: any(span.name == "volume job" for span in spans))
        (root,) = [span for span in spans if span.name == "volume job"]
        assert root.trace_id.hex() == PARENT.split("-")[1]
        assert root.parent_span_id.hex() == PARENT.split("-")[2]
        until(lambda: {"queued", "downloading", "converting", "finalizing"} <= {span.name for span in spans})
        assert {span.parent_span_id for span in spans if span is not root} == {root.span_id}
        assert all(root.start_time_unix_nano <= span.start_time_unix_nano for span in spans)
        assert {one.key: one.value.string_value for one in root.attributes}["lvp.job.id"] == job_id
        second = submit(daemon, server.of("zlib.qcow2"), "web-02", "not a trace")
        assert daemon.job_ended(second)["status"] == "completed"
        assert daemon.stop() == 0
        roots = [span for span in spans if span.name == "volume job"]  # the last export was at the stop
        assert [root.parent_span_id for root in roots[1:]] == [b""]


def test_collector_that_is_down(make_daemon, server):
    daemon = make_daemon("t", observers=OBSERVER)
    daemon.environment = {**daemon.environment, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    daemon.start()
    job_id = submit(daemon, server.of("zlib.qcow2"), "web-01", PARENT)
    assert daemon.job_ended(job_id)["status"] == "completed"
    assert daemon.stop() == 0
