"""Tests of the two formats of /metrics, read with the parsers of the client library."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

OPENMETRICS = "application/openmetrics-text"
# As Prometheus 2.53 and 3 send it.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


async def scrape(service, accept=None):
    headers = {} if accept is None else {"Accept": accept}
    response = await service.call("GET", "/metrics", role=None, headers=headers)
    assert response.headers["Vary"] == "Accept"
    return response.content_type, await response.get_data(as_text=True)


@pytest.mark.parametrize(
    "accept", [OPENMETRICS, f"{OPENMETRICS}; version=1.0.0", f"text/plain;q=0.5, {OPENMETRICS}", PROMETHEUS]
)
async def test_openmetrics_when_asked_for(service, accept):
    await service.done()
    kind, text = await scrape(service, accept)
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert text.endswith("# EOF\n")
    families = {family.name: family for family in read_openmetrics(text)}
    jobs = families["libvirt_volume_provisioner_jobs"]
    assert jobs.type == "counter"
    assert {sample.labels["status"]: sample.value for sample in jobs.samples}["completed"] == 1
    assert families["libvirt_volume_provisioner_request_duration_seconds"].type == "histogram"


@pytest.mark.parametrize(
    "accept", [None, "*/*", "text/plain", f"text/plain, {OPENMETRICS};q=0.5", f"{OPENMETRICS};q=0", "x"]
)
async def test_text_format_otherwise(service, accept):
    await service.done()
    kind, text = await scrape(service, accept)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in read_text(text)}
    assert "# EOF" not in text
    (completed,) = [
        sample
        for sample in families["libvirt_volume_provisioner_jobs"].samples
        if sample.labels["status"] == "completed"
    ]
    assert (completed.name, completed.value) == ("libvirt_volume_provisioner_jobs_total", 1)


async def test_formats_do_not_mix(service):
    """The rendered text is reused for a second, each format by itself."""
    for _ in range(2):
        assert (await scrape(service, OPENMETRICS))[1].endswith("# EOF\n")
        assert "# EOF" not in (await scrape(service))[1]


@pytest.mark.parametrize("accept", [None, OPENMETRICS])
async def test_no_created_series(service, accept):
    await service.done()
    assert "_created" not in (await scrape(service, accept))[1]


async def test_same_series_in_both_formats(service):
    await service.done()
    texts = [(await scrape(service, accept))[1] for accept in (None, OPENMETRICS)]
    names = [
        {sample.name for family in read(text) for sample in family.samples}
        for read, text in zip((read_text, read_openmetrics), texts, strict=True)
    ]
    assert names[0] == names[1]
