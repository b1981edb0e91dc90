"""Tests of uploads: over real connections, with real files; cut, slow, wrong, refused, resumed and used by jobs."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h11
import httpx
import pytest
import trio
import trio.testing

from provisioner.cache import uploads
from provisioner.config import CacheSettings
from provisioner.config.access import Limits
from provisioner.contracts import MIB, ByteSize
from provisioner.server import streamed_body
from tests.contents import first_bytes
from tests.provisioner.api.conftest import IMAGE, URL, job, running
from tests.provisioner.api.document import held, refused
from tests.provisioner.api.served import served

DATA = bytes(range(256)) * 8192  # 2 MiB
SIZE = len(DATA)
SHA = hashlib.sha256(DATA).hexdigest()
PATH = "/api/v1/cache/images"
UPLOAD = f"{PATH}?checksum={SHA}&name=builds/disk.raw"
STATE = f"{PATH}/sha256:{SHA}/upload?name=builds/disk.raw"
REFERENCE = "upload://cache/builds/disk.raw"


@pytest.fixture
async def wire(service):
    async with served(service) as (url, _):
        yield Wire(service, int(url.rpartition(":")[2]))


class Wire:
    """Connections to the service."""

    def __init__(self, service, port):
        self.service, self.port = service, port

    @asynccontextmanager
    async def sending(self, path=UPLOAD, size=SIZE, content_range=None, role="operator"):
        """Open a connection and send the head of an upload."""
        lines = [f"PUT {path} HTTP/1.1", "Host: x", f"X-API-Token: {self.service.token[role]}"]
        lines += [f"Content-Length: {size}", *([f"Content-Range: {content_range}"] if content_range else [])]
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        with trio.fail_after(60):
            async with stream:
                await stream.send_all("\r\n".join([*lines, "", ""]).encode())
                yield stream

    async def put(self, data, **more):
        """Send a whole upload; return the status and the body of the answer."""
        async with self.sending(size=len(data), **more) as stream:
            await stream.send_all(data)
            return await answer(stream)

    async def state(self, role="operator", path=STATE):
        return await held(await self.service.call("GET", path, role=role), "UploadState")

    async def cut(self, data, after, **more):
        """Send the beginning of an upload and go when it has arrived."""
        async with self.sending(**more) as stream:
            await stream.send_all(data[:after])
            await self.waiting("uploading")
        return await self.waiting("waiting")

    async def waiting(self, status):
        """Return the state when it is ``status``."""
        with trio.fail_after(60):
            while (state := await self.state())["status"] != status:  # noqa: ASYNC110
                await trio.sleep(0.005)  # clients must poll
        return state

    @property
    def partial_folder(self):
        return self.service.folder / "state" / "cache" / ".lvp" / "partial"

    def files(self):
        cache = self.service.folder / "state" / "cache"
        return {path.name for path in cache.rglob("*") if path.is_file() and "index" not in path.name}


async def answer(stream):
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="PUT", target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    reader.send(h11.EndOfMessage())
    body, status = b"", None
    while True:
        event = reader.next_event()
        if event is h11.NEED_DATA:
            reader.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return status, json.loads(body)


async def test_uploaded_image_becomes_a_volume(service):
    response = await service.upload(UPLOAD, DATA, role="operator")
    body = await held(response, "UploadedImage", 201)
    assert (body["status"], body["image_url"], body["url"]) == ("uploaded", REFERENCE, REFERENCE)
    assert (body["size"], body["format"], body["pinned"]) == (len(DATA), "raw", True)
    wanted = {"image_url": REFERENCE, "volume_name": "web-01"}
    done = await service.ended((await (await service.submit(wanted)).get_json())["job_id"])
    assert done["status"] == "completed", done
    assert done["cache_hit"] is True
    assert done["request"]["checksum"] == f"sha256:{SHA}"
    assert done["request"]["image_type"] == "raw"
    assert first_bytes(service.target.folder / "web-01", len(DATA)) == DATA
    plan = await (await service.call("POST", "/api/v1/jobs?dry_run=true", json=wanted)).get_json()
    assert (plan["download_bytes"], plan["cache_hit"]) == (0, True)


async def test_name_stands_for_the_last_upload(service):
    await held(await service.upload(UPLOAD, DATA), "UploadedImage", 201)
    newer = DATA[::-1]
    sha = hashlib.sha256(newer).hexdigest()
    await held(await service.upload(UPLOAD.replace(SHA, sha), newer), "UploadedImage", 201)
    response = await service.submit({"image_url": REFERENCE, "volume_name": "a"})
    done = await service.ended((await response.get_json())["job_id"])
    assert done["request"]["checksum"] == f"sha256:{sha}"
    older = {"image_url": REFERENCE, "volume_name": "b", "checksum": SHA, "image_type": "raw"}
    done = await service.ended((await (await service.submit(older)).get_json())["job_id"])
    assert done["status"] == "completed"
    assert first_bytes(service.target.folder / "b", len(DATA)) == DATA


async def test_job_with_unknown_upload_is_refused(service):
    response = await service.submit({"image_url": REFERENCE, "volume_name": "web-01"})
    await refused(response, 400, "invalid request", "no uploaded image builds/disk.raw in the cache; upload it again")
    gone = {"image_url": REFERENCE, "volume_name": "web-01", "checksum": SHA}
    done = await service.ended((await (await service.submit(gone)).get_json())["job_id"])
    assert done["status"] == "failed"
    assert "no uploaded image" in done["error"]


async def test_cut_upload_is_resumed(wire):
    state = await wire.cut(DATA, len(DATA) // 2)
    assert (state["status"], state["offset"]) == ("waiting", len(DATA) // 2)
    assert len(wire.files()) == 1
    rest = f"bytes {state['offset']}-{len(DATA) - 1}/{len(DATA)}"
    status, body = await wire.put(DATA[state["offset"] :], content_range=rest)
    assert (status, body["status"]) == (201, "uploaded")
    assert wire.files() == {body["path"].rpartition("/")[2]}
    assert (await wire.state())["status"] == "cached"


async def test_partial_upload_belongs_to_its_caller(wire):
    """Who sent only the end of an image does not have the image."""
    await wire.cut(DATA, len(DATA) // 2)
    assert (await wire.state("admin"))["offset"] == 0
    rest = f"bytes {len(DATA) // 2}-{len(DATA) - 1}/{len(DATA)}"
    status, body = await wire.put(DATA[len(DATA) // 2 :], content_range=rest, role="admin")
    assert (status, body["error"]) == (409, "conflict")
    assert (await wire.state())["offset"] == len(DATA) // 2


async def test_upload_starts_over(wire):
    """Without a range the body is the whole image, whatever is kept of another one."""
    await wire.cut(DATA[::-1], len(DATA) // 2)
    assert (await wire.put(DATA))[0] == 201


async def test_complete_partial_is_finished_without_a_body(wire):
    """The service may die after the last byte and before the image is published."""
    partials = wire.service.services.cache.uploads.partials
    principal = "token:operator"
    wanted = uploads.Upload(SHA, len(DATA), "builds/disk.raw", principal)
    fd, path, _ = partials.open(uploads._content(wanted), len(DATA))
    os.write(fd, DATA)
    os.close(fd)
    partials.keep(path)
    assert (await wire.state())["offset"] == len(DATA)
    assert (await wire.put(b"", content_range=f"bytes */{len(DATA)}"))[0] == 201


async def test_wrong_digest_leaves_nothing(wire):
    status, body = await wire.put(DATA[:-1] + b"x")
    assert (status, body["error"]) == (422, "image error")
    assert f"but {SHA} was announced; nothing was kept" in body["message"]
    assert wire.files() == set()
    assert (await wire.state())["offset"] == 0


async def test_wrong_digest_after_a_cut_leaves_nothing(wire):
    state = await wire.cut(DATA[::-1], len(DATA) // 2)
    rest = f"bytes {state['offset']}-{len(DATA) - 1}/{len(DATA)}"
    assert (await wire.put(DATA[state["offset"] :], content_range=rest))[0] == 422
    assert wire.files() == set()


async def test_what_is_no_disk_ends_the_upload_at_once(wire):
    """The answer comes while the client still has most of the body."""
    page = b"<!DOCTYPE html><html>" + bytes(4 * MIB)
    async with wire.sending(size=1024 * MIB) as stream:
        await stream.send_all(page)
        status, body = await answer(stream)
    assert status == 422
    assert "not a disk image" in body["message"]
    assert wire.files() == set()


async def test_other_format_than_declared(service):
    await refused(await service.upload(f"{UPLOAD}&image_type=qcow2", DATA), 422, "image error", "but is raw")
    await refused(await service.upload(f"{UPLOAD}&image_type=tape", DATA), 400, "invalid request", "tape")


async def test_cached_image_is_answered_without_a_body(wire):
    assert (await wire.put(DATA))[0] == 201
    async with wire.sending(path=UPLOAD.replace("builds/", "again/")) as stream:  # the body never comes
        status, body = await answer(stream)
    assert (status, body["status"], body["image_url"]) == (200, "cached", "upload://cache/again/disk.raw")
    job_id = await wire.service.submit({"image_url": body["image_url"], "volume_name": "web-01"})
    assert (await wire.service.ended((await job_id.get_json())["job_id"]))["status"] == "completed"


async def test_cached_image_whose_file_is_gone_is_uploaded_anew(wire):
    _, body = await wire.put(DATA)
    await trio.Path(body["path"]).unlink()
    assert (await wire.put(DATA))[0] == 201
    assert wire.files() == {body["path"].rpartition("/")[2]}


async def test_second_request_for_an_upload_in_progress(wire):
    async with wire.sending() as stream:
        await stream.send_all(DATA[: len(DATA) // 2])
        await wire.waiting("uploading")
        status, body = await wire.put(DATA)
        assert (status, body["error"]) == (409, "conflict")
        assert (await wire.put(DATA, role="admin"))[0] == 201  # another caller's own upload
        await stream.send_all(DATA[len(DATA) // 2 :])
        assert (await answer(stream))[0] == 201
    assert len(wire.files()) == 1


async def test_too_many_uploads(wire, monkeypatch):
    monkeypatch.setattr(uploads, "MOST", 1)
    async with wire.sending():
        await wire.waiting("uploading")
        assert (await wire.put(DATA, role="admin"))[0] == 429


async def test_too_many_uploads_of_one_caller(wire, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_PER_CALLER", 1)
    other = DATA[::-1]
    path = UPLOAD.replace(SHA, hashlib.sha256(other).hexdigest())
    async with wire.sending():
        await wire.waiting("uploading")
        assert (await wire.put(other, path=path))[0] == 429
        assert (await wire.put(other, path=path, role="admin"))[0] == 201


@pytest.mark.parametrize("start", ["/", "http://x", "/%61pi/v1/cache/images"])
async def test_other_spellings_of_the_path(wire, start):
    path = UPLOAD.replace("/api/v1/cache/images", start) if "%" in start else start + UPLOAD
    assert (await wire.put(DATA, path=path))[0] == 201


async def test_abandoned_upload_expires(wire):
    await wire.cut(DATA, 1000)
    (file,) = await trio.Path(wire.partial_folder).iterdir()
    os.utime(file, (0, 0))
    cache = wire.service.services.cache
    cache.uploads.partials._note(Path(file), resumable=True)  # as the next start finds it
    await trio.to_thread.run_sync(cache.uploads.partials.sweep_old)
    assert wire.files() == set()
    assert (await wire.state())["offset"] == 0


async def test_room_is_made_from_abandoned_uploads(folder):
    other = DATA[::-1]
    async with running(folder, cache_size=SIZE * 3 // 2) as service, served(service) as (url, _):
        wire = Wire(service, int(url.rpartition(":")[2]))
        await wire.cut(DATA, SIZE * 3 // 4)
        path = UPLOAD.replace(SHA, hashlib.sha256(other).hexdigest())
        assert (await wire.put(other, path=path))[0] == 201
        assert (await wire.state())["offset"] == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Range": f"bytes 0-{len(DATA)}/{len(DATA)}"}, 400),
        ({"Content-Range": f"bytes 1-{len(DATA) - 1}/{len(DATA)}"}, 400),
        ({"Content-Range": f"bytes 0-9/{len(DATA)}", "Content-Length": "10"}, 400),
        ({"Content-Range": f"bytes */{len(DATA)}"}, 400),
        ({"Content-Range": "items 0-1/2"}, 400),
        ({"Content-Length": "0"}, 400),
        ({"Content-Length": str(2**63)}, 400),
        ({"Content-Length": str(2**50)}, 413),
        ({"Content-Type": "text/plain"}, 415),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
async def test_invalid_head_is_refused(service, headers, status):
    response = await service.upload(UPLOAD, b"", headers={"Content-Length": str(len(DATA)), **headers})
    assert response.status_code == status
    assert service.services.cache.entries() == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("name=x", "checksum"),
        ("checksum=12", "checksum must be 64"),
        (f"checksum={SHA * 2}", "uploads need the image's sha256"),
        (f"checksum={SHA}&name=../etc/passwd", "name"),
        (f"checksum={SHA}&name=a//b", "name"),
        (f"checksum={SHA}&name={'a' * 201}", "name"),
        (f"checksum={SHA}&name={'0' * 64}", "name: it looks like the checksum of another image"),
        (f"checksum={SHA}&pinned=maybe", "pinned"),
        (f"checksum={SHA}&size=1", "unknown query parameter 'size'"),
    ],
)
async def test_invalid_query_is_refused(service, query, message):
    response = await service.upload(f"{PATH}?{query}", DATA)
    await refused(response, 400, "invalid request", message)


@pytest.mark.parametrize("role", ["viewer", None])
async def test_role_is_refused_before_the_body(wire, role):
    wire.service.token[None] = "wrong"
    async with wire.sending(role=role) as stream:  # the body never comes
        status, _ = await answer(stream)
    assert status == (403 if role else 401)
    assert wire.files() == set()


async def test_limited_caller_uploads_into_its_folder_only(service):
    limits = Limits(sources=["upload://cache/builds"])
    limited = {"X-API-Token": service.tokens.create("ci", "operator", limits=limits)}
    await refused(
        await service.upload(UPLOAD.replace("builds/", "other/"), DATA, role=None, headers=limited),
        403,
        "forbidden",
        "ci",
    )
    await held(await service.upload(UPLOAD, DATA, role=None, headers=limited), "UploadedImage", 201)
    wanted = {"image_url": REFERENCE, "volume_name": "web-01"}
    response = await service.submit(wanted, role=None, headers=limited)
    assert (await service.ended((await response.get_json())["job_id"]))["status"] == "completed"


async def test_limited_caller_must_send_a_cached_image(service):
    """The digest alone gives no access to an image; a caller that has its bytes may use it."""
    await service.done(job())
    sha = hashlib.sha256(IMAGE).hexdigest()
    limited = {"X-API-Token": service.tokens.create("ci", "operator", limits=Limits(sources=["upload://cache/ci"]))}
    state = f"{PATH}/{sha}/upload?name=ci/disk.raw"
    found = await held(await service.call("GET", state, role=None, headers=limited), "UploadState")
    assert (found["status"], found["offset"]) == ("waiting", 0)
    upload = f"{PATH}?checksum={sha}&name=ci/disk.raw"
    wanted = {"image_url": "upload://cache/ci/disk.raw", "volume_name": "web-02"}
    response = await service.upload(upload, IMAGE[:-1] + b"x", role=None, headers=limited)
    await refused(response, 422, "image error", "was announced")
    assert (await service.submit(wanted, role=None, headers=limited)).status_code == 400
    await held(await service.upload(upload, IMAGE, role=None, headers=limited), "UploadedImage", 201)
    response = await service.submit(wanted, role=None, headers=limited)
    assert (await service.ended((await response.get_json())["job_id"]))["status"] == "completed"
    (entry,) = service.services.cache.entries()
    assert (entry.url, entry.pinned) == (URL, True)


@pytest.mark.parametrize("size", [0, len(DATA) - 1])
async def test_size_limit(folder, size):
    async with running(folder, cache=CacheSettings(max_upload=ByteSize(size))) as service:
        for response in (
            await service.upload(UPLOAD, DATA),
            await service.call("GET", f"{STATE}&size={len(DATA)}"),
        ):
            await refused(response, 413 if size else 403, "payload too large" if size else "forbidden", "max_upload")


async def test_no_room(folder):
    async with running(folder, cache_size=len(DATA) - 1) as service:
        await refused(await service.upload(UPLOAD, DATA), 507, "cache error", "no room for 2.0 MiB")
        await refused(await service.call("GET", f"{STATE}&size={len(DATA)}"), 507, "cache error", "no room")
        assert not list((folder / "state" / "cache" / ".lvp" / "partial").iterdir())


async def test_unpinned_upload_is_evicted_and_pinned_is_not(folder):
    other = DATA[::-1]
    second = UPLOAD.replace(SHA, hashlib.sha256(other).hexdigest())
    async with running(folder / "a", cache_size=len(DATA) * 3 // 2) as service:
        await held(await service.upload(f"{UPLOAD}&pinned=false", DATA), "UploadedImage", 201)
        await held(await service.upload(second, other), "UploadedImage", 201)
        await refused(await service.upload(UPLOAD, DATA), 507, "cache error", "no room")
        assert [entry.pinned for entry in service.services.cache.entries()] == [True]


async def test_draining_service_takes_no_uploads(service):
    await service.services.supervisor.drain()
    await refused(await service.upload(UPLOAD, DATA), 503, "service unavailable", "takes no uploads")


async def test_slow_client_is_disconnected_and_may_go_on(wire, monkeypatch):
    monkeypatch.setattr(streamed_body, "WINDOW", 0.05)
    async with wire.sending() as stream:
        await stream.send_all(DATA[:1000])
        status, body = await answer(stream)
    assert (status, body["error"]) == (408, "request timeout")
    assert (await wire.waiting("waiting"))["offset"] == 1000


async def test_client_gone_is_audited(folder):
    audit = folder / "audit.log"
    async with running(folder, audit=audit) as service, served(service) as (url, _):
        await Wire(service, int(url.rpartition(":")[2])).cut(DATA, 1000)
        with trio.fail_after(30):
            while "client gone" not in (text := audit.read_text() if audit.exists() else ""):  # noqa: ASYNC110
                await trio.sleep(0.005)
        line = next(json.loads(one) for one in text.splitlines() if "client gone" in one)
        assert (line["endpoint"], line["image"], line["source"]) == (PATH, f"sha256:{SHA}", "upload://cache")


async def test_next_request_on_the_same_connection(wire):
    async with wire.sending() as stream:
        await stream.send_all(DATA)
        assert (await answer(stream))[0] == 201
        await stream.send_all(
            f"GET {STATE} HTTP/1.1\r\nHost: x\r\nX-API-Token: {wire.service.token['admin']}\r\n\r\n".encode()
        )
        assert (await answer(stream))[0] == 200


@pytest.mark.parametrize(("size", "closes"), [(0, False), (1, True)])
async def test_refused_request_without_a_body_keeps_the_connection(wire, size, closes):
    async with wire.sending(role="viewer", size=size) as stream:
        assert (await answer(stream))[0] == 403
        got = b""
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            got = await stream.receive_some(100)
        assert (got == b"") is closes


@pytest.fixture
def slow_disk(monkeypatch):
    """Let no write to the disk end until the event is set."""
    free, write = threading.Event(), uploads.pwrite_all

    def wait_and_write(*args):
        assert free.wait(60)
        write(*args)

    monkeypatch.setattr(uploads, "pwrite_all", wait_and_write)
    yield free
    free.set()


def socket_buffers():
    """Return the bytes that the kernel may hold between two ends of a connection."""
    return sum(int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2]) for name in ("tcp_rmem", "tcp_wmem"))


async def settled(count):
    """Return ``count()`` when nothing goes on any more."""
    before, now = -1, count()
    while now != before:
        await trio.testing.wait_all_tasks_blocked(0.1)
        before, now = now, count()
    return now


async def test_client_waits_for_a_slow_disk(wire, slow_disk):
    """What the service holds is limited, whatever the client would send; others are served meanwhile."""
    limit = socket_buffers() + 2 * MIB
    data = bytes(limit + 32 * MIB)
    path = UPLOAD.replace(SHA, hashlib.sha256(data).hexdigest())
    sent = 0
    async with wire.sending(path=path, size=len(data)) as stream, trio.open_nursery() as nursery:

        async def send():
            nonlocal sent
            while sent < len(data):
                await stream.send_all(data[sent : sent + 65536])
                sent += 65536

        nursery.start_soon(send)
        assert await settled(lambda: sent) < limit
        assert (await wire.service.call("GET", "/health", role=None)).status_code == 200
        assert (await wire.service.call("GET", PATH)).status_code == 200
        slow_disk.set()
        assert (await answer(stream))[0] == 201


class Http2Upload:
    """An upload of DATA over HTTP/2; ``sent`` counts the bytes that flow control let through."""

    def __init__(self, stream, token):
        self.stream, self.sent, self.answer = stream, 0, b""
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.client.initiate_connection()
        headers = [(":method", "PUT"), (":path", UPLOAD), (":scheme", "http"), (":authority", "x")]
        self.client.send_headers(1, [*headers, ("x-api-token", token), ("content-length", str(SIZE))])

    async def run(self):
        while not self.answer:
            await self.send()
            for event in self.client.receive_data(await self.stream.receive_some(65536)):
                if isinstance(event, h2.events.DataReceived):
                    self.answer += event.data

    async def send(self):
        while (length := min(self.client.local_flow_control_window(1), 16384, SIZE - self.sent)) > 0:
            end = self.sent + length
            self.client.send_data(1, DATA[self.sent : end], end_stream=end == SIZE)
            self.sent = end
        await self.stream.send_all(self.client.data_to_send())


async def test_http2_answer_before_the_body_ends(wire):
    """Of an upload that is refused, the rest is dropped, and the connection stays usable."""

    async def pieces():
        yield b"<!DOCTYPE html><html>"
        for _ in range(64):
            yield bytes(65536)

    size = str(21 + 64 * 65536)
    headers = {"X-API-Token": wire.service.token["operator"], "Content-Length": size}
    url = f"http://127.0.0.1:{wire.port}"
    async with httpx.AsyncClient(base_url=url, http1=False, http2=True, trust_env=False, timeout=60) as client:
        answer = await client.put(UPLOAD, content=pieces(), headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (422, "image error")
        assert (await client.get("/health")).status_code == 200
    assert wire.files() == set()


async def test_http2_client_waits_for_a_slow_disk(wire, slow_disk):
    async with await trio.open_tcp_stream("127.0.0.1", wire.port) as stream, trio.open_nursery() as nursery:
        upload = Http2Upload(stream, wire.service.token["operator"])
        nursery.start_soon(upload.run)
        assert await settled(lambda: upload.sent) < MIB
        slow_disk.set()
    assert json.loads(upload.answer)["status"] == "uploaded"
