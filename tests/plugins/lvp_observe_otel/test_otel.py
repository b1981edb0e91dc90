"""Tests of the observer: the spans of a job, by the SDK's in-memory exporter, and what can go wrong beside it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from lvp_observe_otel import OtelObserver, observer, traces
from lvp_observe_otel.traces import exporter_of_environment, parent_of
from provisioner.contracts import BackEndContext, JobEvent, NoSettings
from provisioner.contracts.errors import PluginError

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)


def event(**changes):
    fields = {
        "job_id": "job-1",
        "status": "completed",
        "stage": "finalizing",
        "percent": 100.0,
        "volume_name": "wéb-01",
        "image_url": "https://images.example.org/a.qcow2?signature=secret",
        "correlation_id": "c-1",
        "error": None,
        "at": 110.0,
        "accepted_at": 100.0,
        "stages": {"checking_cache": (101.0, 102.0), "downloading": (102.0, 108.0), "converting": (103.0, 109.0)},
        "traceparent": PARENT,
    }
    return JobEvent(**{**fields, **changes})


async def spans_of(*events, folder):
    exporter = InMemorySpanExporter()
    made = OtelObserver(NoSettings(), BackEndContext("traces", folder), exporter)
    for one in events:
        await made.job_changed(one)
    await made.aclose()
    return exporter.get_finished_spans()


async def test_spans_of_a_job(tmp_path):
    spans = await spans_of(event(status="pending"), event(status="running"), event(), folder=tmp_path)
    *stages, root = spans
    assert root.name == "volume job"
    assert root.context.trace_id == 0x4BF92F3577B34DA6A3CE929D0E0E4736
    assert root.parent.span_id == 0x00F067AA0BA902B7
    assert (root.start_time, root.end_time) == (100 * 10**9, 110 * 10**9)
    assert root.status.status_code is StatusCode.OK
    assert root.attributes == {
        "lvp.job.id": "job-1",
        "lvp.job.status": "completed",
        "lvp.image.url": "https://images.example.org/a.qcow2",
        "lvp.volume.name": "wéb-01",
        "lvp.correlation_id": "c-1",
    }
    assert root.resource.attributes["service.name"] == "libvirt-volume-provisioner"
    assert {span.name: (span.start_time // 10**9, span.end_time // 10**9) for span in stages} == {
        "queued": (100, 101),
        "checking_cache": (101, 102),
        "downloading": (102, 108),
        "converting": (103, 109),
    }
    assert {span.parent.span_id for span in stages} == {root.context.span_id}
    assert {span.context.trace_id for span in stages} == {root.context.trace_id}


@pytest.mark.parametrize(
    ("status", "error", "said"), [("failed", "no room", "no room"), ("cancelled", None, "cancelled")]
)
async def test_job_that_did_not_complete(tmp_path, status, error, said):
    *stages, root = await spans_of(event(status=status, error=error, stages={}, traceparent=None), folder=tmp_path)
    assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, said)
    assert root.parent is None
    assert [(span.name, span.end_time) for span in stages] == [("queued", 110 * 10**9)]


async def test_fetch_into_the_cache(tmp_path):
    root = (await spans_of(event(volume_name=None), folder=tmp_path))[-1]
    assert root.name == "image fetch"
    assert "lvp.volume.name" not in root.attributes


async def test_clock_that_was_set_back(tmp_path):
    spans = await spans_of(event(at=90.0, stages={"downloading": (95.0, 91.0)}), folder=tmp_path)
    assert all(span.end_time >= span.start_time for span in spans)


async def test_parent_that_is_not_sampled(tmp_path):
    assert await spans_of(event(traceparent=PARENT[:-1] + "0"), folder=tmp_path) == ()


async def test_service_name_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "kvm-7")
    assert (await spans_of(event(), folder=tmp_path))[0].resource.attributes["service.name"] == "kvm-7"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "nonsense",
        PARENT.upper(),
        "ff" + PARENT[2:],
        PARENT + "-more",
        "00-" + 32 * "0" + PARENT[35:],
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + 16 * "0" + "-01",
    ],
)
def test_invalid_parent_is_none(text):
    assert not parent_of(text)


def test_parent_of_a_later_version():
    assert parent_of("01" + PARENT[2:] + "-more")


class Hanging(SpanExporter):
    """An exporter whose collector never answers, until ``let_go``."""

    def __init__(self):
        self.began, self.let_go = threading.Event(), threading.Event()

    def export(self, spans):
        self.began.set()
        self.let_go.wait(60)
        return SpanExportResult.FAILURE

    def shutdown(self):
        self.let_go.wait(60)


async def test_collector_that_hangs(tmp_path, monkeypatch):
    """Jobs go on, spans beyond the queue are dropped, and the service stops in time."""
    monkeypatch.setattr(observer, "_LAST_EXPORT", 0.1)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    exporter = Hanging()
    made = OtelObserver(NoSettings(), BackEndContext("traces", tmp_path), exporter)
    try:
        for _ in range(200):
            await made.job_changed(event())
        assert exporter.began.wait(60)
        await made.aclose()
    finally:
        exporter.let_go.set()


def test_exporter_of_the_environment(monkeypatch):
    assert type(exporter_of_environment()).__module__.startswith("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    assert type(exporter_of_environment()).__name__ == "ConsoleSpanExporter"
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert exporter_of_environment() is None
    for name, value in (("OTEL_TRACES_EXPORTER", "nonsense"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")):
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        monkeypatch.setenv(name, value)
        with pytest.raises(PluginError, match="is installed"):
            exporter_of_environment()


def test_missing_sdk(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, traces.__name__, None)
    with pytest.raises(PluginError, match=r"install libvirt-volume-provisioner\[otel\]"):
        OtelObserver(NoSettings(), BackEndContext("traces", tmp_path))


def test_sdk_is_not_loaded_while_off():
    code = "import sys, lvp_observe_otel; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
