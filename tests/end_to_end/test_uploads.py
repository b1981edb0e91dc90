"""Tests of uploads to a running daemon: cut and killed half-way, larger than its memory, by the real ``lvp``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from provisioner.auth.tokens import TokenFile
from tests.end_to_end.conftest import same
from tests.end_to_end.daemon import LVP, TIMEOUT, until

pytestmark = pytest.mark.slow

MIB = 2**20
PATH = "/api/v1/cache/images"


def sha(file):
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@pytest.fixture
def image(images):
    return images["plain.qcow2"].file


class Relay:
    """A proxy between client and daemon that cuts the first connection after ``after`` bytes from the client.

    ``stalls``: it passes nothing on from there instead, until ``free`` is set.
    """

    def __init__(self, url, after, *, stalls=False):
        self.stalls, self.stalled, self.free = stalls, threading.Event(), threading.Event()
        self.target = ("127.0.0.1", int(url.rpartition(":")[2]))
        self.after = after
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.cuts = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self.join, args=(client,), daemon=True).start()

    def join(self, client):
        with client, socket.create_connection(self.target) as server:
            back = threading.Thread(target=self.forward, args=(server, client, False), daemon=True)
            back.start()
            self.forward(client, server, True)
            back.join()

    def forward(self, source, sink, limited):
        passed = 0
        try:
            while data := source.recv(min(65536, self.after - passed) if limited and passed < self.after else 65536):
                sink.sendall(data)
                passed += len(data)
                if limited and self.stalls and passed >= self.after:
                    self.stalled.set()
                    self.free.wait(TIMEOUT)
                elif limited and not self.cuts and passed >= self.after:
                    self.cuts += 1
                    source.shutdown(socket.SHUT_RDWR)
                    sink.shutdown(socket.SHUT_RDWR)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # the other side is gone
            with contextlib.suppress(OSError):
                source.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay(daemon):
    made = []

    def start(after, **more):
        made.append(Relay(daemon.url, after, **more))
        return made[-1]

    yield start
    for one in made:
        one.listener.close()


def connect(daemon):
    made = socket.create_connection(("127.0.0.1", int(daemon.url.rpartition(":")[2])))
    made.settimeout(TIMEOUT)
    return made


def begin(daemon, checksum, size):
    """Return a connection with the head of an upload sent."""
    made = connect(daemon)
    head = f"PUT {PATH}?checksum={checksum} HTTP/1.1\r\nHost: x\r\nX-API-Token: {daemon.token}\r\n"
    made.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
    return made


def offset(daemon, checksum):
    state = daemon.call("GET", f"{PATH}/{checksum}/upload").json()
    return state["status"], state["offset"]


def test_push_and_use(daemon, images):
    """What ``lvp image push`` prints is what ``lvp job submit`` takes, whatever the image's type."""
    for name in ("zlib.qcow2", "sparse.raw"):
        pushed = daemon.lvp("image", "push", images[name].file)
        assert (pushed.status, pushed.out) == (0, f"upload://cache/{name}\n"), pushed.err
        assert "hashing 100 %" in pushed.err
        assert "uploading 100 %" in pushed.err
        done = daemon.lvp("job", "submit", pushed.out.strip(), name, "1", "--wait")
        assert done.status == 0, done.err
        assert same(images[name], daemon.volume(name))
    again = daemon.lvp("image", "push", images["zlib.qcow2"].file, "--name", "again/x.qcow2", "--json")
    body = json.loads(again.out)
    assert (body["status"], body["image_url"]) == ("cached", "upload://cache/again/x.qcow2")
    assert daemon.stop() == 0


def test_push_goes_on_after_a_cut(daemon, relay, images):
    file = images["full.raw"].file
    between = relay(file.stat().st_size // 2)
    done = subprocess.run(
        [*LVP, "image", "push", str(file), "--url", between.url, "--token", daemon.token],
        capture_output=True, text=True, env=daemon.environment, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "upload://cache/full.raw\n"), done.stderr
    assert between.cuts == 1
    assert "upload interrupted, trying to go on" in done.stderr
    (resumed,) = daemon.events("resuming an upload")
    assert resumed["at_byte"] >= file.stat().st_size // 4
    assert daemon.stop() == 0


def test_push_waits_for_another_request(daemon, images):
    """A request of the same caller may be left from a connection that broke without a sign."""
    file = images["full.raw"].file
    data, checksum = file.read_bytes(), sha(file)
    with begin(daemon, checksum, len(data)) as connection:
        connection.sendall(data[:MIB])
        until(lambda: offset(daemon, checksum)[0] == "uploading")
        with subprocess.Popen(
            [*LVP, "image", "push", str(file), "--url", daemon.url, "--token", daemon.token],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=daemon.environment,
        ) as push:  # fmt: skip
            said = iter(push.stderr.readline, "")
            assert any("waiting for another upload of this image" in line for line in said)
            connection.close()
            out, _ = push.communicate(timeout=TIMEOUT)
    assert (push.returncode, out) == (0, "upload://cache/full.raw\n")
    assert daemon.event("resuming an upload")["at_byte"] == MIB
    assert daemon.stop() == 0


def test_push_interrupted(daemon, relay, images):
    """Ctrl-C: the server keeps what has arrived, and the same command goes on."""
    file = images["full.raw"].file
    between = relay(16 * MIB, stalls=True)
    with subprocess.Popen(
        [*LVP, "image", "push", str(file), "--url", between.url, "--token", daemon.token],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=daemon.environment,
    ) as push:  # fmt: skip
        assert between.stalled.wait(TIMEOUT)
        push.send_signal(signal.SIGINT)
        _, err = push.communicate(timeout=TIMEOUT)
    between.free.set()
    assert push.returncode == 130
    assert "goes on from there" in err
    until(lambda: offset(daemon, sha(file))[0] == "waiting")
    done = daemon.lvp("image", "push", file)
    assert (done.status, done.out) == (0, "upload://cache/full.raw\n")
    assert daemon.event("resuming an upload")["at_byte"] >= 8 * MIB
    assert daemon.stop() == 0


def test_push_of_what_is_no_disk(daemon, images):
    """The server's answer reaches the user although the server closes the connection before the end."""
    root = images["full.raw"].file.parent
    page = root / "page.raw"
    page.write_bytes(b"<!DOCTYPE html><html>")
    os.truncate(page, 1024 * MIB)
    before = daemon.files()
    done = daemon.lvp("image", "push", page, "--patience", "0")
    page.unlink()
    assert done.status == 4, done.err
    assert "not a disk image" in done.err
    assert daemon.files() == before
    assert daemon.stop() == 0


def test_push_refused(daemon, image, tmp_path):
    assert daemon.lvp("image", "push", image, "--type", "raw").status == 4
    assert daemon.lvp("image", "push", image, "--name", "../x").status == 4
    assert daemon.lvp("image", "push", tmp_path / "absent").status == 2
    viewer = TokenFile(daemon.folder / "state" / "tokens.json").create("v", "viewer")
    refused = daemon.lvp("image", "push", image, "--token", viewer)
    assert refused.status == 4
    assert "has the role viewer; this needs operator" in refused.err
    (tmp_path / "empty").touch()
    assert "is empty" in daemon.lvp("image", "push", tmp_path / "empty").err
    assert daemon.stop() == 0


def test_push_over_the_limit(make_daemon, image):
    daemon = make_daemon(cache={"max_upload": "1MiB"}).start()
    done = daemon.lvp("image", "push", image)
    assert done.status == 4
    assert "uploads may have 1MiB (max_upload in [cache])" in done.err
    assert daemon.stop() == 0


def test_upload_goes_on_after_a_kill(daemon, image):
    data, checksum = image.read_bytes(), sha(image)
    half = len(data) // 2
    with begin(daemon, checksum, len(data)) as connection:
        connection.sendall(data[:half])
        until(lambda: offset(daemon, checksum)[1] >= half // 2)
        daemon.kill()
    daemon.start()
    status, there = offset(daemon, checksum)
    assert status == "waiting"
    assert half // 2 <= there <= half
    answer = httpx.put(
        f"{daemon.url}{PATH}?checksum={checksum}&name=web.qcow2",
        content=data[there:],
        headers={"X-API-Token": daemon.token, "Content-Range": f"bytes {there}-{len(data) - 1}/{len(data)}"},
        timeout=TIMEOUT,
        trust_env=False,
    )
    assert answer.status_code == 201, answer.text
    done = daemon.lvp("job", "submit", "upload://cache/web.qcow2", "web-01", "1", "--wait")
    assert done.status == 0, done.err
    assert daemon.stop() == 0
    daemon.start()  # the name is remembered
    assert daemon.lvp("job", "submit", "upload://cache/web.qcow2", "web-02", "1", "--wait").status == 0
    assert daemon.stop() == 0


def test_upload_is_kept_by_a_stop(daemon, image):
    data, checksum = image.read_bytes(), sha(image)
    with begin(daemon, checksum, len(data)) as connection:
        connection.sendall(data[:MIB])
        until(lambda: offset(daemon, checksum)[1] >= MIB // 2)
        assert daemon.stop() == 0
    daemon.start()
    status, there = offset(daemon, checksum)
    assert status == "waiting"
    assert MIB // 2 <= there <= MIB
    assert daemon.stop() == 0


def test_client_gone_leaves_no_descriptor(daemon, image):
    data, checksum = image.read_bytes(), sha(image)
    process = psutil.Process(daemon.pid)
    partial = daemon.folder / "state" / "cache" / ".lvp" / "partial"

    def held():
        return [one for one in process.open_files() if one.path.startswith(str(partial))], process.net_connections()

    assert offset(daemon, checksum) == ("waiting", 0)
    idle = len(until(lambda: len(process.net_connections()) == 1 and process.net_connections()))
    for sent in (MIB, 2 * MIB):
        with begin(daemon, checksum, len(data)) as connection:
            connection.sendall(data[:sent])
            until(lambda: offset(daemon, checksum)[0] == "uploading")
            until(lambda: held()[0])
        until(lambda sent=sent: offset(daemon, checksum) == ("waiting", sent))
        until(lambda: not held()[0] and len(held()[1]) == idle)
    assert len(list(partial.iterdir())) == 1
    assert daemon.call("POST", "/api/v1/cache/prune").status_code == 403
    admin = TokenFile(daemon.folder / "state" / "tokens.json").create("a", "admin")
    assert daemon.lvp("cache", "prune", "--token", admin).status == 0
    assert not list(partial.iterdir())
    assert daemon.stop() == 0


def memory(daemon):
    """Return the most memory that the daemon ever had, in bytes."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_memory_stays_flat(daemon, tmp_path):
    """A body of 256 MiB passes through; others are served meanwhile."""
    small, large = tmp_path / "small.raw", tmp_path / "large.raw"
    for file, size in ((small, 8 * MIB), (large, 256 * MIB)):
        file.touch()
        os.truncate(file, size)
    assert daemon.lvp("image", "push", small).status == 0
    before = memory(daemon)
    checksum, answered = sha(large), 0
    with begin(daemon, checksum, 256 * MIB) as connection, large.open("rb") as file:
        while data := file.read(16 * MIB):
            connection.sendall(data)
            assert httpx.get(f"{daemon.url}/health", trust_env=False, timeout=TIMEOUT).status_code == 200
            answered += 1
        assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")
    assert answered == 16
    assert memory(daemon) - before < 48 * MIB
    assert daemon.stop() == 0


def test_2_gib_with_a_cut(daemon, relay, tmp_path):
    file = tmp_path / "disk.raw"
    with file.open("wb") as opened:
        opened.write(os.urandom(MIB))
        opened.truncate(2048 * MIB)
    between = relay(1024 * MIB)
    started = time.monotonic()
    done = subprocess.run(
        [*LVP, "image", "push", str(file), "--name", "big", "--url", between.url, "--token", daemon.token, "--json"],
        capture_output=True, text=True, env=daemon.environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert (body["status"], body["size"], body["checksum"]) == ("uploaded", 2048 * MIB, sha(file))
    assert between.cuts == 1
    (resumed,) = daemon.events("resuming an upload")
    assert 900 * MIB < resumed["at_byte"] <= 1024 * MIB
    print(f"{time.monotonic() - started:.0f} s")
    assert daemon.stop() == 0
