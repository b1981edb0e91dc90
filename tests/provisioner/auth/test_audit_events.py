"""Tests of the audit log after real requests: its records, no secrets in it, and a limit on guesses."""

from __future__ import annotations

import json
import re

import httpx
import pytest
import trio

from provisioner.auth.audit_events import group_of
from provisioner.config import AuthSettings, Limits
from tests.provisioner.api.conftest import ABSENT, URL, job, running
from tests.provisioner.api.served import served

MAX_FAILURES = AuthSettings().max_failures


class Books:
    def __init__(self, service, file):
        self.service, self.file = service, file

    async def lines(self, count):
        """Wait until the audit log has ``count`` lines, which another thread writes; return them."""
        with trio.fail_after(30):
            while True:
                found = [json.loads(line) for line in self.file.read_text().splitlines()]
                if len(found) >= count:
                    assert len(found) == count, found
                    return found
                await trio.sleep(0.005)


@pytest.fixture
async def books(tmp_path):
    async with running(tmp_path, audit=tmp_path / "audit.log") as service:
        yield Books(service, tmp_path / "audit.log")


async def test_request_record(books):
    ended = await books.service.done(job(correlation_id="deploy-1"))
    await books.service.call("GET", "/api/v1/jobs")
    await books.service.call("DELETE", "/api/v1/volumes/fake/web-01", role="operator")
    await books.service.call("DELETE", "/api/v1/volumes/fake/web-01", headers={"X-Request-ID": "r-1"})
    asked, ended_line, refused, removed = await books.lines(4)
    shared = {"job_id": ended["job_id"], "target": "fake", "volume": "web-01", "source": "http://images.example"}
    who = {"principal": "admin", "role": "admin", "via": "token"}
    at = asked.pop("at")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", at)
    assert asked == {
        "event": "request", "method": "POST", "endpoint": "/api/v1/jobs", "status": 202, "address": asked["address"],
        "request_id": "deploy-1", **who, **shared,
    }  # fmt: skip
    assert ended_line.items() >= {"event": "job", "status": "completed", "principal": "admin", "via": "token"}.items()
    assert ended_line.items() >= shared.items()
    assert (refused["status"], refused["reason"], refused["principal"]) == (403, "forbidden", "operator")
    assert (removed["status"], removed["volume"], removed["request_id"]) == (200, "web-01", "r-1")
    assert removed["endpoint"] == "/api/v1/volumes/{target}/{name}"


async def test_job_end_record(tmp_path):
    async with running(tmp_path, audit=tmp_path / "audit.log", work=False) as service:
        books = Books(service, tmp_path / "audit.log")
        job_id = (await (await service.submit(role="operator")).get_json())["job_id"]
        await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")
        lines = await books.lines(3)
    assert [(line["event"], line["status"], line["principal"]) for line in lines] == [
        ("request", 202, "operator"),
        ("job", "cancelled", "operator"),  # the owner of the job
        ("request", 200, "admin"),  # the caller who cancelled it
    ]
    assert {line["job_id"] for line in lines} == {job_id}


async def test_failed_job_record(books):
    await books.service.done(job(image_url=ABSENT))
    assert [line["status"] for line in await books.lines(2)] == [202, "failed"]


async def test_forbidden_request_record(books):
    books.service.token["ci"] = books.service.tokens.create("ci", "operator", limits=Limits(volumes=["ci-*"]))
    await books.service.submit(role="ci")
    (line,) = await books.lines(1)
    assert (line["status"], line["volume"], line["target"], line["principal"]) == (403, "web-01", "fake", "ci")


async def test_records_contain_no_secrets(tmp_path):
    """Secrets in every place where a client can put one, including invalid credentials."""
    async with running(tmp_path, audit=tmp_path / "audit.log", work=False) as service:
        await _put_secrets_everywhere(Books(service, tmp_path / "audit.log"))


async def _put_secrets_everywhere(books):
    secret, signature = books.service.token["admin"], "X-Amz-Signature=5c7a"
    other = "lvp_" + "A" * 43
    await books.service.submit(job(secret, image_url=f"{URL}?{signature}", correlation_id=other))
    await books.service.submit(job("x", image_url=f"http://u:hunter2@images.example/{secret}"))
    await books.service.submit(job("y", image_url=f"http://elsewhere.example/{signature}", target=secret))
    await books.service.submit(headers={"X-Request-ID": secret, "Idempotency-Key": other})
    await books.service.call("POST", f"/api/v1/jobs/{secret}/cancel?token={other}")
    await books.service.call("DELETE", f"/api/v1/volumes/{other}/{secret}?{signature}")
    await books.service.call("DELETE", f"/api/v1/cache/images/{other}")
    await books.service.call("POST", f"/api/v1/{secret}?{signature}")
    await books.service.call("GET", f"/api/v1/{secret}", role=None, headers={"X-API-Token": other})
    await books.service.call("GET", "/api/v1/jobs", role=None, headers={"Authorization": f"Bearer {other}"})
    await books.service.call("GET", "/api/v1/jobs", role=None, headers={"Authorization": "Basic aHVudGVyMg=="})
    text = json.dumps(await books.lines(11))
    for word in (secret, other, signature, "hunter2", "aHVudGVyMg"):
        assert word not in text


async def test_guesser_is_throttled(tmp_path):
    async with (
        running(tmp_path, audit=tmp_path / "audit.log") as service,
        served(service) as (url, _),
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        answers = [
            await client.get("/api/v1/jobs", headers={"X-API-Token": f"lvp_{number}"})
            for number in range(MAX_FAILURES + 10)
        ]
        assert [answer.status_code for answer in answers] == [401] * MAX_FAILURES + [429] * 10
        last = answers[-1]
        assert last.json() == {
            "error": "too many requests", "message": "too many failed authentications from this address", "code": 429,
            "reason": "too-many-requests",
        }  # fmt: skip
        assert 1 <= int(last.headers["Retry-After"]) <= 60
        good = await client.get("/api/v1/jobs", headers={"X-API-Token": service.token["viewer"]})
        assert good.status_code == 200  # valid callers behind the same address are not delayed
        assert (await client.get("/api/v1/jobs")).status_code == 401  # a request without a credential is no guess
        assert (await client.get("/health")).status_code == 200
        text = (await client.get("/metrics")).text
        assert f'authentication_failures_total{{presented="token"}} {MAX_FAILURES + 10}.0' in text
        assert 'authentication_failures_total{presented="nothing"} 1.0' in text
        lines = await Books(service, tmp_path / "audit.log").lines(MAX_FAILURES + 1)
    assert [line["status"] for line in lines] == [401] * MAX_FAILURES + [429]
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert not any("principal" in line for line in lines)


async def test_requests_outside_api_unrecorded(books):
    for method, path in (("POST", "/health"), ("DELETE", "/nothing"), ("PUT", "/metrics")):
        await books.service.call(method, path, role=None)
    await books.service.call("POST", "/api/v1/cache/prune")
    (line,) = await books.lines(1)
    assert line["endpoint"] == "/api/v1/cache/prune"


async def test_client_disconnects_early(tmp_path):
    """The request is recorded although its response was not sent."""
    async with running(tmp_path, audit=tmp_path / "audit.log") as service, served(service) as (url, _):
        reached, go_on = trio.Event(), trio.Event()

        async def stuck(*_args, **_more):
            reached.set()
            await go_on.wait()

        service.services.supervisor.remove_volume = stuck
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        head = (
            f"DELETE /api/v1/volumes/fake/web-01 HTTP/1.1\r\nHost: x\r\nX-API-Token: {service.token['admin']}\r\n\r\n"
        )
        await stream.send_all(head.encode())
        await reached.wait()
        await stream.aclose()
        (line,) = await Books(service, tmp_path / "audit.log").lines(1)
    assert (line["status"], line["volume"], line["principal"]) == ("client gone", "web-01", "admin")


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("local", "local"),
    ],
)
def test_group_of(address, group):
    assert group_of(address) == group
