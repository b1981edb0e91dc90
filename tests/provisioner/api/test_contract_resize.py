"""Tests of POST /volumes/{target}/{name}/resize."""

from __future__ import annotations

import json

import pytest
import trio

from tests.provisioner.api.conftest import running
from tests.provisioner.api.document import held, refused

GIB = 2**30


def resize(service, size=2, name="web-01", target="fake", **more):
    body = {"volume_size_gb": size, **more.pop("body", {})}
    return service.call("POST", f"/api/v1/volumes/{target}/{name}/resize", json=body, **more)


async def test_resize(service):
    """The new size shows in the list, with the origin unchanged."""
    await service.done()
    (before,) = (await (await service.call("GET", "/api/v1/volumes")).get_json())["volumes"]
    body = await held(await resize(service, role="operator"), "VolumeResized")
    expected = {"target": "fake", "name": "web-01", "path": before["path"], "size_bytes": 2 * GIB}
    assert body == {"status": "resized", **expected}
    assert (await trio.Path(before["path"]).stat()).st_size == 2 * GIB
    assert await held(await resize(service), "VolumeResized") == {"status": "unchanged", **expected}
    (after,) = (await held(await service.call("GET", "/api/v1/volumes"), "VolumeList"))["volumes"]
    assert after == {**before, "size_bytes": 2 * GIB}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "volume_size_gb is required"),
        ({"volume_size_gb": 0}, "volume_size_gb"),
        ({"volume_size_gb": "2"}, "volume_size_gb"),
        ({"volume_size_gb": 2, "online": "yes"}, "online"),
        ({"volume_size_gb": 2, "size": 2}, "size"),
    ],
)
async def test_resize_with_invalid_body(service, body, message):
    response = await service.call("POST", "/api/v1/volumes/fake/web-01/resize", json=body)
    await refused(response, 400, "invalid request", message)


async def test_resize_refusals(service):
    await refused(await resize(service), 404, "not found", "web-01")
    await refused(await resize(service, target="nowhere"), 404, "not found", "nowhere")
    (service.folder / "volumes" / "foreign").write_bytes(b"x")
    await refused(await resize(service, name="foreign"), 404, "not found", "foreign")
    await service.done()
    await resize(service, 4)
    await refused(await resize(service, 3), 409, "conflict", "has 4 GiB and is never shrunk")
    await refused(await resize(service, 2**20), 507, "target error", "not enough space")
    await refused(await resize(service, 5, role="viewer"), 403, "forbidden", ".")
    await refused(await resize(service, 5, body={"force": True}), 400, "invalid request", "force")


async def test_resize_in_use(service):
    await service.done()
    service.target.in_use.add("web-01")
    await refused(await resize(service), 409, "conflict", "web-01 is in use")
    assert (await resize(service, 1)).status_code == 200
    null = await resize(service, body={"online": None})
    await refused(null, 409, "conflict", "web-01 is in use")
    body = await held(await resize(service, body={"online": True}), "VolumeResized")
    assert body["size_bytes"] == 2 * GIB


async def test_resize_with_active_job(idle):
    job_id = (await (await idle.submit()).get_json())["job_id"]
    await refused(await resize(idle), 409, "conflict", job_id)


async def test_resize_is_audited(folder):
    audit = trio.Path(folder / "audit.log")
    async with running(folder, audit=folder / "audit.log") as service:
        await service.done()
        await resize(service, role="operator")
        with trio.fail_after(60):
            while "resize" not in await audit.read_text():  # noqa: ASYNC110
                await trio.sleep(0.01)  # the log is written in the background
    lines = [json.loads(line) for line in (await audit.read_text()).splitlines()]
    (line,) = [line for line in lines if line.get("endpoint", "").endswith("/resize")]
    assert (line["status"], line["target"], line["volume"], line["principal"]) == (200, "fake", "web-01", "operator")
