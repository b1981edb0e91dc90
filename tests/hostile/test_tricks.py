"""Attacks around an image: on its name, its file in the cache, and the program that converts it."""

from __future__ import annotations

import hashlib
import json
import os
import re

import pytest

from tests.hostile.conftest import running
from tests.hostile.forge import MIB, SECRET
from tests.hostile.server import scripted_server

pytestmark = pytest.mark.slow


@pytest.fixture
def server(shop):
    with scripted_server() as server:
        server.answers["/disk.raw"] = shop.raw.read_bytes()
        yield server


@pytest.fixture
def start(tmp_path, shop, server):
    """Return a context manager that runs a host with the given configuration."""
    return lambda **tables: running(tmp_path / "d", shop, lambda name: server.of(f"/{name}"), **tables)


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


NAMES = [
    "a:b.qcow2", "-o", "--help", "json:%7B%7D", "nbd:127.0.0.1", "line%0Abreak", "%FF%FE.qcow2", "%00", "a%2Fb",
    "$(id)", ";id", "'", "%22", "x" * 3900, "~", "con.raw", "%E2%80%AE", "*", "?a=b",
]  # fmt: skip


def test_odd_file_name(start, server):
    with start() as host:
        for name in NAMES:
            content = name.encode().ljust(MIB, b".")
            server.answers[f"/odd/{name}"] = content
            job = host.ask(server.of(f"/odd/{name}"), "raw", checksum=digest(content))
            assert job["status"] == "completed", job.get("error", name)
            with host.daemon.volume("web01").open("rb") as volume:
                assert volume.read(MIB) == content
            assert re.fullmatch(r"[\w./:+@~=-]{1,400}", job["image_path"]), job["image_path"]
            assert {path for path in host.daemon.files() if path.startswith("volumes")} == {"volumes/web01.raw"}


@pytest.mark.parametrize("how", ["replaced", "a link to a file of the host", "written over", "cut off"])
def test_cached_file_tampered_with(start, server, shop, how):
    good = shop.raw.read_bytes()
    with start() as host:
        (cached,) = host.daemon.call("GET", "/api/v1/cache/images").json()["images"]
        path = host.daemon.folder / cached["path"]
        evil = path.with_name("evil")
        evil.write_bytes(SECRET.ljust(len(good), b"."))
        if how == "replaced":
            evil.rename(path)
        elif how == "written over":
            path.chmod(0o600)
            path.write_bytes(evil.read_bytes())
            evil.unlink()
        elif how == "cut off":
            path.chmod(0o600)
            os.truncate(path, MIB // 2)
            evil.unlink()
        else:
            path.unlink()
            path.symlink_to(shop.secret)
            evil.unlink()
        job = host.ask(server.of("/disk.raw"), "raw", checksum=digest(good))
        assert (job["status"], job["cache_hit"]) == ("completed", False), job
        host.check_unchanged()


EATER = 'import sys\ntry: bytearray(1 << 40)\nexcept MemoryError: sys.exit("memory exhausted")'
ABUSE = {
    "eats memory": (f"exec python3 -c '{EATER}'", "memory exhausted"),
    "makes no progress": ("while :; do :; done", "no progress"),
    "makes children": ("sleep 1000 & sleep 1000 & exec sleep 1000", "no progress"),
    "ignores being asked to stop": ("trap '' TERM; while :; do :; done", "no progress"),
    "crashes": ("kill -SEGV $$", "signal SIGSEGV"),
    "reads the host": ("cat /etc/passwd >&2; exit 1", "Permission denied"),
}


@pytest.mark.parametrize("kind", ABUSE)
def test_compromised_converter(start, server, tmp_path, kind):
    script, words = ABUSE[kind]
    tool = tmp_path / "tool"
    described = json.dumps({"virtual-size": MIB})
    tool.write_text(f"#!/bin/sh\n[ $1 = info ] && echo '{described}'\n[ $1 = convert ] || exit 0\n{script}\n")
    tool.chmod(0o755)
    abused = {"plugin": "qemu-img", "path": str(tool), "memory_limit": "256MiB", "stall_timeout": "2s"}
    with start(converters={"vmdk": abused}) as host:
        content = host.shop.convert("vmdk")
        server.answers["/abuse"] = content
        job = host.ask(server.of("/abuse"), "vmdk", checksum=digest(content))
        assert job["status"] == "failed"
        assert re.search(words, job["error"]), job["error"]
        host.check_unchanged()
