"""The Python client against a real daemon: results, errors, waits that are interrupted, and the async client."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import aclosing

import pytest
import trio

from contrib.clients.service import running
from provisioner.client import (
    ApiError,
    AsyncClient,
    Client,
    JobCancelledError,
    JobFailedError,
    SettingsError,
    UnreachableError,
    WaitTimeoutError,
)
from tests.end_to_end.conftest import same
from tests.end_to_end.daemon import until

pytestmark = pytest.mark.slow
HELD = 256 * 1024


@pytest.fixture
def client(daemon):
    with Client(daemon.url, token=daemon.token) as found:
        yield found


def test_volume_from_submit_to_resize(client, daemon, server, images):
    plan = client.plan("web-01", image_url=server.of("zlib.qcow2"), size_gb=1)
    assert (plan["refusals"], plan["placement"]) == ([], "new")
    accepted = client.submit("web-01", image_url=server.of("zlib.qcow2"), size_gb=1, correlation_id="größer ☃")
    job = client.wait(accepted["job_id"], timeout=60)
    assert job["volume"]["path"] == str(daemon.volume("web-01"))
    assert same(images["zlib.qcow2"], daemon.volume("web-01"))
    assert [one["job_id"] for one in client.jobs(correlation_id="größer ☃")] == [accepted["job_id"]]
    assert list(client.jobs(status="failed")) == []
    (volume,) = client.volumes()
    (image,) = client.cached_images()
    assert volume["checksum"] == image["checksum"]
    assert client.resize_volume("files", "web-01", 2)["size_bytes"] == 2**31
    assert client.pin_image(image["checksum"])["status"] == "pinned"
    assert client.unpin_image(image["checksum"])["status"] == "unpinned"
    assert client.whoami()["role"] == "operator"
    assert [one["name"] for one in client.targets()] == ["files"]
    assert [one["name"] for one in client.sources()] == ["http"]
    assert client.images() == []
    assert client.health()["status"] == "healthy"
    assert client.ready()["status"] == "ready"


def test_same_idempotency_key_is_the_same_job(client, server):
    first, second = (
        client.submit("web-01", image_url=server.of("zlib.qcow2"), size_gb=1, idempotency_key="k") for _ in range(2)
    )
    assert second == {**first, "repeated": True}


def test_failed_job(client, server):
    job_id = client.submit("web-01", image_url=server.of("wrong.qcow2"), size_gb=1)["job_id"]
    with pytest.raises(JobFailedError, match="was expected by") as raised:
        client.wait(job_id)
    assert raised.value.job["status"] == "failed"
    assert list(client.follow(job_id))[-1]["status"] == "failed"


def test_error_responses(client, daemon, server):
    with pytest.raises(ApiError) as raised:
        client.job("00000000-0000-4000-8000-000000000000")
    found = raised.value
    assert (found.status, found.category, found.temporary) == (404, "job not found", False)
    assert found.request_id
    with pytest.raises(ApiError, match="volume"):
        client.submit("wéb ☃", image_url=server.of("zlib.qcow2"))
    with pytest.raises(ApiError, match="operator") as raised:
        client.remove_volume("files", "web-01")
    assert raised.value.status == 403
    with pytest.raises(SettingsError, match="image_url"):
        client.submit("web-01")
    with Client(daemon.url, token="wrong") as other, pytest.raises(ApiError) as raised:
        other.whoami()
    assert raised.value.status == 401


def test_unusable_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for given in (
        {"url": "ftp://host"},
        {"url": "https://host:99999"},
        {"key": "key.pem"},
        {"token_file": str(tmp_path / "missing")},
        {"url": "https://host", "ca": str(tmp_path / "missing")},
    ):
        with pytest.raises(SettingsError):
            Client(**given)
    with Client("http://127.0.0.1:1", token="t") as client, pytest.raises(UnreachableError) as raised:
        client.whoami()
    assert raised.value.lost is False


@pytest.mark.filterwarnings("ignore")  # httpcore leaves the socket that could not connect to the garbage collector
def test_missing_unix_socket(tmp_path):
    with Client(f"unix:{tmp_path}/none", token="t") as client, pytest.raises(UnreachableError) as raised:
        client.whoami()
    assert "cannot be reached" in raised.value.message
    del raised
    gc.collect()


def test_settings_from_the_environment(daemon, tmp_path, monkeypatch):
    monkeypatch.setenv("LVP_URL", daemon.url)
    monkeypatch.setenv("LVP_TOKEN_FILE", str(daemon.folder / "client-token"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Client() as client:
        assert client.whoami()["via"] == "token"


def test_unix_socket(make_daemon):
    daemon = make_daemon("u")
    socket = daemon.folder / "lvp.sock"
    daemon.config["server"]["bind"] = [f"unix:{socket}", "127.0.0.1:0"]
    daemon.start()
    with Client(f"unix:{socket}", token=daemon.token) as client:
        assert client.whoami()["role"] == "operator"


def test_certificate(tmp_path):
    with running(tmp_path) as service:
        pki = service.pki
        cert, key = (str(pki / "clients" / f"generated.{kind}") for kind in ("pem", "key"))
        with Client(service.daemon.url, ca=str(pki / "ca.pem"), cert=cert, key=key) as client:
            assert client.whoami()["principal"] == "certificate:generated"
        with Client(service.later_url, ca=str(pki / "ca.pem"), token=service.daemon.token) as client:
            assert client.whoami()["principal"] == "token:client"  # a later version: unknown fields
        with (
            Client(service.daemon.url, token="t") as client,
            pytest.raises(UnreachableError, match="certificate verify"),
        ):
            client.whoami()
        with pytest.raises(SettingsError, match="cannot be used"):
            Client(service.daemon.url, cert=cert, key=str(pki / "ca.key"))


def submit_held(client, server):
    """Submit a job whose download waits in its middle; return its id when it runs."""
    server.held["plain.qcow2"] = HELD
    job_id = client.submit("web-01", image_url=server.of("plain.qcow2"), size_gb=1)["job_id"]
    until(lambda: client.job(job_id)["status"] == "running")
    return job_id


def test_wait_times_out_and_job_goes_on(client, server):
    job_id = submit_held(client, server)
    with pytest.raises(WaitTimeoutError, match="continues on the server") as raised:
        client.wait(job_id, timeout=0.2)
    assert raised.value.job["job_id"] == job_id
    server.let_go.set()
    assert client.wait(job_id)["status"] == "completed"


def test_cancel_ends_the_wait(client, server):
    job_id = submit_held(client, server)
    errors = []

    def wait():
        try:
            client.wait(job_id)
        except JobCancelledError as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert client.cancel(job_id)["status"] == "cancelled"
    waiter.join(60)
    assert [error.job["status"] for error in errors] == ["cancelled"]


def test_server_killed_while_waiting(make_daemon, server, images):
    daemon = make_daemon("k").start()
    with Client(daemon.url, token=daemon.token) as client:
        job_id = submit_held(client, server)
        states = client.follow(job_id)
        assert next(states)["status"] == "running"
        daemon.kill()
        with pytest.raises(UnreachableError):
            client.job(job_id)
        server.let_go.set()
        daemon.config["server"]["bind"] = [daemon.url.removeprefix("http://")]
        starter = threading.Thread(target=daemon.start)
        starter.start()
        try:
            assert list(states)[-1]["status"] == "completed"
        finally:
            starter.join()
    assert same(images["plain.qcow2"], daemon.volume("web-01"))


def test_events(client, server):
    job_id = submit_held(client, server)
    kinds = []
    for event in client.events(job_id):
        kinds.append(event.kind)
        if event.kind == "snapshot":
            assert event.data["jobs"][0]["job_id"] == job_id
            server.let_go.set()
    assert kinds[0] == "snapshot"
    assert kinds[-2:] == ["job.completed", "end"]
    with pytest.raises(ApiError):
        list(client.events("00000000-0000-4000-8000-000000000000"))


async def use(daemon, server, name):
    """Use the async client, under the loop that runs it; return what happened."""
    async with AsyncClient(daemon.url, token=daemon.token) as client:
        accepted = await client.submit(name, image_url=server.of("zlib.qcow2"), size_gb=1)
        job = await client.wait(accepted["job_id"], timeout=60)
        async with aclosing(client.events(accepted["job_id"])) as events:
            kinds = [event.kind async for event in events]
        jobs = [one async for one in client.jobs(volume_name=name)]
        try:
            await client.job("nonsense")
        except ApiError as error:
            return job["status"], kinds, len(jobs), error.status
        raise AssertionError("no error")


@pytest.mark.parametrize("run", [trio.run, lambda *args: asyncio.run(args[0](*args[1:]))], ids=["trio", "asyncio"])
def test_async_client(run, daemon, server):
    assert run(use, daemon, server, "web-01") == ("completed", ["snapshot", "end"], 1, 404)
