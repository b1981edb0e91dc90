"""Who may make a seed, and what a dry run says about one."""

import pytest

from provisioner.config.access import Limits
from tests.provisioner.api.conftest import URL

JOB = {"image_url": URL, "image_type": "raw", "volume_name": "web-01", "volume_size_gb": 1}
SEEDED = {**JOB, "cloud_init": {"user_data": "#cloud-config", "meta_data": None}}


async def plan(service, body):
    return await (await service.call("POST", "/api/v1/jobs?dry_run=true", json=body)).get_json()


@pytest.mark.parametrize(("volumes", "status"), [(["web-01"], 403), (["web-01", "web-01-seed"], 202), (["web-*"], 202)])
async def test_limits_cover_the_seed(idle, volumes, status):
    token = idle.tokens.create("ci", "operator", limits=Limits(volumes=volumes))
    response = await idle.submit(SEEDED, role=None, headers={"X-API-Token": token})
    assert response.status_code == status
    if status == 403:
        assert "may not use a volume 'web-01-seed'" in (await response.get_json())["message"]


async def test_plan_names_the_seed(service):
    assert (await plan(service, SEEDED))["seed_name"] == "web-01-seed"
    assert "seed_name" not in await plan(service, JOB)
    await service.done(SEEDED)
    assert (await plan(service, SEEDED))["refusals"] == []
    (refusal,) = (await plan(service, JOB))["refusals"]
    assert "has the cloud-init seed web-01-seed" in refusal["message"]
    (refusal,) = (await plan(service, {**JOB, "volume_name": "web-01-seed"}))["refusals"]
    assert "is the cloud-init seed of web-01" in refusal["message"]


async def test_plan_while_the_seed_is_taken(idle):
    """The names of both volumes are reserved, and one that is too long is refused."""
    await idle.submit(SEEDED)
    for name in ("web-01", "web-01-seed"):
        (refusal,) = (await plan(idle, {**JOB, "volume_name": name}))["refusals"]
        assert "is still pending" in refusal["message"]
    long = {**SEEDED, "volume_name": "x" * 100}
    assert (await idle.submit({**JOB, "volume_name": "x" * 100})).status_code == 202
    response = await idle.submit(long)
    assert (response.status_code, "is not a valid volume name" in (await response.get_json())["message"]) == (400, True)
