"""Tests that the app's routes, api.yaml, the roles and the documented metric names agree."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import yaml

from provisioner.api.page import ENDPOINTS as PAGE_ROUTES
from provisioner.api.routes import OPEN_ROUTES, ROLES
from provisioner.config import AuthSettings
from provisioner.contracts.testing import FakeImage
from tests.provisioner.api.conftest import IMAGE, job, running

DOCUMENT = yaml.load((Path(__file__).parents[3] / "api.yaml").read_text(), yaml.CSafeLoader)
OTHER = "http://images.example/other.raw"
OTHER_DIGEST = f"sha256:{hashlib.sha256(IMAGE[::-1]).hexdigest()}"
METHODS = {"get", "put", "post", "delete", "patch"}
DOCUMENTED = {
    (method.upper(), path): operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method in METHODS
}
# Dashboards and alerts depend on these names.
PROMISED_METRICS = """
libvirt_volume_provisioner_requests_total libvirt_volume_provisioner_jobs_total libvirt_volume_provisioner_active_jobs
libvirt_volume_provisioner_request_duration_seconds_bucket libvirt_volume_provisioner_job_duration_seconds_bucket
libvirt_volume_provisioner_downloaded_bytes_total libvirt_volume_provisioner_written_bytes_total
libvirt_volume_provisioner_cache_lookups_total libvirt_volume_provisioner_cache_size_bytes
libvirt_volume_provisioner_cache_evictions_total libvirt_volume_provisioner_cache_images
libvirt_volume_provisioner_volumes_provisioned_total libvirt_volume_provisioner_queue_depth
libvirt_volume_provisioner_target_free_bytes libvirt_volume_provisioner_target_freeable_bytes
libvirt_volume_provisioner_target_size_bytes
libvirt_volume_provisioner_build_info process_cpu_seconds_total process_resident_memory_bytes process_open_fds
python_info python_gc_collections_total
""".split()  # noqa: SIM905


def pattern(rule):
    return rule.rule.replace("<", "{").replace(">", "}")


def routes(app):
    """Return the routes of the API; the page's files are not part of it."""
    return {
        (method, pattern(rule)): rule
        for rule in app.url_map.iter_rules()
        for method in rule.methods
        if method != "HEAD" and rule.endpoint not in PAGE_ROUTES
    }


async def test_routes_match_document(service):
    assert routes(service.app).keys() == DOCUMENTED.keys()


async def test_rules_are_only_matched(service):
    """No function that builds URLs is compiled, because that takes 50 ms."""
    for rule in service.app.url_map.iter_rules():
        with pytest.raises(NotImplementedError, match="builds no URL"):
            rule.build({"job_id": "x"})


async def test_every_operation_has_a_role(service):
    endpoints = {rule.endpoint for rule in routes(service.app).values() if rule.rule.startswith("/api/")}
    assert endpoints == ROLES.keys()


async def test_every_route_is_open_or_has_a_role(service):
    endpoints = {rule.endpoint for rule in service.app.url_map.iter_rules()}
    assert endpoints == ROLES.keys() | OPEN_ROUTES
    assert not ROLES.keys() & OPEN_ROUTES


@pytest.mark.parametrize("path", ["/api/v1/forgotten", "/forgotten"])
async def test_route_without_role_is_forbidden(service, path):
    """A route that is missing in the table is closed to all roles, also outside /api."""

    async def forgotten():
        raise AssertionError("it ran")

    service.app.add_url_rule(path, "v1.forgotten", forgotten, methods=["GET", "POST"])
    for method in ("GET", "POST"):
        assert (await service.call(method, path, role=None)).status_code == 401
        for role in ("viewer", "operator", "admin"):
            response = await service.call(method, path, role=role)
            assert response.status_code == 403
            assert "no role" in (await response.get_json())["message"]


async def test_path_parameter_names_match_document(service):
    for method, path in routes(service.app):
        item = DOCUMENT["paths"][path]
        named = [*item.get("parameters", ()), *item[method.lower()].get("parameters", ())]
        named = [DOCUMENT["components"]["parameters"][n["$ref"].split("/")[-1]] if "$ref" in n else n for n in named]
        assert {n["name"] for n in named if n["in"] == "path"} == set(re.findall(r"{(\w+)}", path)), path


async def test_documented_metrics_exist(service):
    await service.done()
    await service.call("GET", "/metrics", role=None)
    text = await (await service.call("GET", "/metrics", role=None)).get_data(as_text=True)
    there = set(re.findall(r"^(\w+)(?:{| )", text, re.MULTILINE))
    assert set(PROMISED_METRICS) - there == set()
    assert re.search(rf"^libvirt_volume_provisioner_written_bytes_total {len(IMAGE)}.0$", text, re.MULTILINE)
    assert re.search(rf"^libvirt_volume_provisioner_downloaded_bytes_total {len(IMAGE)}.0$", text, re.MULTILINE)


async def test_metrics_endpoint_label_is_route(service):
    job_id = (await service.done())["job_id"]
    await service.call("GET", f"/{job_id}")
    text = await (await service.call("GET", "/metrics", role=None)).get_data(as_text=True)
    assert 'endpoint="/api/v1/jobs/{job_id}",method="GET",status="200"' in text
    assert 'endpoint="unmatched",method="GET",status="404"' in text
    assert 'jobs_total{status="started"} 1.0' in text
    assert 'jobs_total{status="completed"} 1.0' in text
    assert job_id not in text


async def test_metrics_unknown_method_is_other(service):
    await service.call("SMUGGLE", "/health")
    text = await (await service.call("GET", "/metrics", role=None)).get_data(as_text=True)
    assert "SMUGGLE" not in text
    assert 'endpoint="unmatched",method="other",status="405"' in text


async def test_evictions_are_counted(folder):
    async with running(folder, cache_size=len(IMAGE) * 3 // 2) as service:
        service.source.images[OTHER] = FakeImage(IMAGE[::-1])
        done = [await service.done(), await service.done(job(image_url=OTHER, checksum=OTHER_DIGEST))]
        assert [entry["status"] for entry in done] == ["completed"] * 2
        text = await (await service.call("GET", "/metrics", role=None)).get_data(as_text=True)
        assert "libvirt_volume_provisioner_cache_evictions_total 1.0" in text
        assert f"libvirt_volume_provisioner_cache_size_bytes {len(IMAGE)}.0" in text


async def test_metrics_with_authentication(folder):
    async with running(folder, auth=AuthSettings(open_metrics=False)) as service:
        assert (await service.call("GET", "/metrics", role=None)).status_code == 401
        assert (await service.call("GET", "/metrics", role="viewer")).status_code == 200
        assert (await service.call("GET", "/health", role=None)).status_code == 200
