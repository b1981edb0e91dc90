"""Tests of the webhook observer against a real receiver that verifies the signatures."""

from __future__ import annotations

import base64
import sqlite3
import time
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from lvp_observe_webhook import WebhookObserver, WebhookSettings
from lvp_observe_webhook.outbox import Message, Outbox
from lvp_observe_webhook.signing import BadSecretError, key_of
from provisioner.contracts import BackEndContext, ChangeEvent, Duration, SecretRef
from tests.servers.webhooks import Receiver

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def receiver():
    with Receiver(SECRET).running() as made:
        yield made


@pytest.fixture
def observer(tmp_path, receiver):
    """Return a function that makes an observer; all share the outbox."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")

    def make(**settings):
        values = {"url": receiver.url, "secret": SecretRef(f"file:{secret}"), **settings}
        return WebhookObserver(WebhookSettings(**values), BackEndContext("ci", tmp_path))

    return make


@asynccontextmanager
async def running(observer, ended=()):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observer.run, ended)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
    await observer.aclose()


def event(number=1, kind="job.completed", at=None, **data):
    return ChangeEvent(f"event-{number}", kind, time.time() if at is None else at, data)


async def wait(receiver, kind):
    return await trio.to_thread.run_sync(receiver.wait, kind)


async def test_message_is_verified_by_the_receiver(receiver, observer):
    one = observer()
    async with running(one):
        await one.changed(event(1, "job.completed", job_id="x", volume_name="web-01"))
        message_id, body = await wait(receiver, "job.completed")
    assert message_id == "msg_event-1"
    assert body["data"] == {"job_id": "x", "volume_name": "web-01"}
    assert body["timestamp"].endswith("Z")
    (headers,) = receiver.headers
    assert headers["webhook-signature"].startswith("v1,")
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert receiver.refused == []


async def test_only_wanted_kinds(receiver, observer):
    one = observer(events=["job.failed", "volume.*"])
    async with running(one):
        for number, kind in enumerate(("job.completed", "volume.removed", "cache.added", "job.failed")):
            await one.changed(event(number, kind))
        await wait(receiver, "job.failed")
    assert [body["type"] for _, body in receiver.received] == ["volume.removed", "job.failed"]


async def test_refused_message_is_repeated(receiver, observer, monkeypatch):
    """With the same id, until it is accepted."""
    monkeypatch.setattr("lvp_observe_webhook.webhook.PAUSES", (0.0,))
    monkeypatch.setattr("lvp_observe_webhook.webhook._REST", 0.001)
    receiver.statuses = [500, 302, 404]
    one = observer()
    async with running(one):
        await one.changed(event())
        await wait(receiver, "job.completed")
    assert [headers["webhook-id"] for headers in receiver.headers] == ["msg_event-1"] * 4


async def test_message_is_given_up(receiver, observer, monkeypatch):
    monkeypatch.setattr("lvp_observe_webhook.webhook._REST", 0.001)
    receiver.statuses = [500]
    one = observer(give_up_after=Duration(60))
    async with running(one):
        await one.changed(event(1, "job.failed", at=time.time() - 61))
        await one.changed(event(2, "job.completed"))
        await wait(receiver, "job.completed")
    assert [body["type"] for _, body in receiver.received] == ["job.completed"]


async def test_message_survives_a_restart(receiver, observer):
    first = observer()
    await first.changed(event())  # never delivered: ``run`` does not run
    await first.aclose()
    async with running(observer()):
        assert (await wait(receiver, "job.completed"))[0] == "msg_event-1"


async def test_missed_end_is_found_at_the_start(receiver, observer):
    """Ends from before the first start are no news, and known ones are not repeated."""
    first = observer()
    await first._in_thread(lambda: first._outbox.begin(time.time()))
    await first.aclose()
    began = time.time()
    one = observer()
    await one.changed(event(1, "job.failed"))
    ended = [event(0, "job.cancelled", at=began - 1000), event(1, "job.failed"), event(2, "job.completed")]
    async with running(one, ended):
        await wait(receiver, "job.completed")
    async with running(observer(), ended):
        pass
    assert sorted(message_id for message_id, _ in receiver.received) == ["msg_event-1", "msg_event-2"]


async def test_forbidden_address(receiver, observer):
    """A host that leads to this one is refused, as for an image source, unless allow_addresses permits it."""
    elsewhere = receiver.url.replace("127.0.0.1", "2130706433")
    message = Message("msg_1", b"{}", 0.0)
    assert "(this host)" in await observer(url=elsewhere)._send(message)
    assert receiver.headers == []
    assert await observer(url=elsewhere, allow_addresses=["127.0.0.0/8"])._send(message) is None


async def test_receiver_that_does_not_answer(observer):
    with trio.socket.socket() as silent:
        await silent.bind(("127.0.0.1", 0))
        silent.listen()
        one = observer(url=f"http://127.0.0.1:{silent.getsockname()[1]}/?key=hidden", timeout=Duration(0.1))
        reason = await one._send(Message("msg_1", b"{}", 0.0))
    assert "did not answer within 0.1 s" in reason
    assert "hidden" not in reason


async def test_nobody_listens(observer):
    reason = await observer(url="http://127.0.0.1:1/?key=hidden")._send(Message("msg_1", b"{}", 0.0))
    assert "cannot be reached" in reason
    assert "hidden" not in reason


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!!!", "whsec_" + "A" * 8, "A" * 44, "whsec_" + "A" * 120])
async def test_unusable_secret(observer, tmp_path, secret):
    (tmp_path / "bad").write_text(secret)
    reason = await observer(secret=SecretRef(f"file:{tmp_path / 'bad'}"))._send(Message("msg_1", b"{}", 0.0))
    assert "secret" in reason
    assert "AAAA" not in reason
    if secret:
        with pytest.raises(BadSecretError):
            key_of(secret)


def test_outbox_is_bounded(tmp_path):
    outbox = Outbox(tmp_path / "outbox", 3)
    dropped = outbox.add(Message(f"msg_{number}", b"{}", float(number)) for number in range(5))
    assert dropped == 2
    assert outbox.next()[0].message_id == "msg_2"
    assert outbox.add([Message("msg_0", b"{}", 0.0)]) == 0  # known, although it is gone
    assert (tmp_path / "outbox").stat().st_mode & 0o777 == 0o600
    outbox.close()


def test_outbox_orders_by_due_time(tmp_path):
    outbox = Outbox(tmp_path / "outbox", 10)
    outbox.add([Message("a", b"1", 1.0), Message("b", b"2", 2.0)])
    outbox.delay("a", 5.0)
    assert outbox.next() == (Message("b", b"2", 2.0), 2.0)
    outbox.remove("b")
    assert outbox.next() == (Message("a", b"1", 1.0, 1), 5.0)
    outbox.remove("a")
    assert outbox.next() is None
    outbox.close()


async def test_outbox_that_cannot_be_written(receiver, observer, tmp_path, monkeypatch):
    """The message waits in memory and is delivered when the outbox can be written again."""
    monkeypatch.setattr("lvp_observe_webhook.webhook._DISK_REST", 0.01)
    blocked = tmp_path / "webhook-ci.sqlite"
    blocked.mkdir()
    one = observer()
    async with running(one):
        with pytest.raises(OSError, match="outbox"):
            await one.changed(event())
        blocked.rmdir()
        await wait(receiver, "job.completed")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"url": "ftp://x"}, "url must be"),
        ({"url": "https://user:word@x/"}, "url must be"),
        ({"events": []}, "at least one"),
        ({"events": ["jobs.*"]}, "'jobs.*' is not a kind"),
        ({"allow_addresses": ["x"]}, "allow_addresses must"),
        ({"client_key": "/k"}, "client_key needs"),
        ({"proxy": "x"}, "proxy must"),
        ({"max_waiting": 0}, "over 0"),
    ],
)
def test_invalid_settings(changed, message):
    with pytest.raises((ValueError, msgspec.ValidationError), match=message):
        WebhookSettings(**{"url": "https://x/", "secret": SecretRef("env:X"), **changed})


def test_outbox_of_another_version(tmp_path):
    """A file that is no database is an error that the observer reports, not the end of the service."""
    (tmp_path / "outbox").write_bytes(b"x" * 4096)
    with pytest.raises(sqlite3.DatabaseError):
        Outbox(tmp_path / "outbox", 1).next()
