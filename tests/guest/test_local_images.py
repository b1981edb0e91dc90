"""Images on a real file system whose server does not answer: FUSE, as a network file system without its server."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from lvp_source_file import FileSettings, FileSource
from provisioner.contracts import MIB, BackEndContext, Duration, ImageUrl
from provisioner.contracts.errors import RemoteUnavailableError

_libc = ctypes.CDLL(None, use_errno=True)
# From linux/fuse.h.
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT, INTERRUPT = 1, 2, 3, 14, 15, 17, 18, 25, 26, 36
_REQUEST = struct.Struct("<IIQQ")  # length, opcode, unique, node
_ATTRIBUTES = struct.Struct("<6Q10I")
_MNT_DETACH = 2


def attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644
    return _ATTRIBUTES.pack(node, 4 * MIB, 8192, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


class Server(threading.Thread):
    """A file server with one file, ``image``, that never answers ``silent_at``; ``reached``: it was asked for that."""

    def __init__(self, silent_at: int) -> None:
        super().__init__(daemon=True)
        if not Path("/dev/fuse").exists():
            subprocess.run(["modprobe", "fuse"], check=True)
        self.fuse = os.open("/dev/fuse", os.O_RDWR)
        self.silent_at = silent_at
        self.reached = threading.Event()
        self._lock = threading.Lock()
        self._unanswered: list[int] = []

    def run(self) -> None:
        while True:
            try:
                request = os.read(self.fuse, 256 * 1024)
            except OSError:  # unmounted
                return
            _, opcode, unique, node = _REQUEST.unpack_from(request)
            with self._lock:
                if opcode == self.silent_at:
                    self._unanswered.append(unique)
                    self.reached.set()
                elif opcode not in {FORGET, INTERRUPT}:
                    body = self.answer(opcode, node)
                    self._reply(unique, errno.ENOSYS if body is None else 0, body or b"")

    def _reply(self, unique: int, error: int, body: bytes = b"") -> None:
        with suppress(OSError):  # who asked is gone
            os.write(self.fuse, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)

    def come_back(self) -> None:
        """Answer everything from now on, also what was asked before: only that ends a thread in the kernel."""
        with self._lock:
            self.silent_at = 0
            for unique in self._unanswered:
                self._reply(unique, errno.EIO)

    def answer(self, opcode: int, node: int) -> bytes | None:
        match opcode:
            case 26:
                return struct.pack("<4I2H2I2H7I", 7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, *(0,) * 7)
            case 1:
                return struct.pack("<4Q2I", 2, 0, 0, 0, 0, 0) + attributes(2)
            case 3:
                return struct.pack("<Q2I", 0, 0, 0) + attributes(node)
            case 14:
                return struct.pack("<Q2I", 0, 0, 0)
            case 15:
                return b"x" * 4096
            case 17:
                return bytes(80)
            case 18 | 25:
                return b""
        return None


@contextmanager
def served(folder: Path, silent_at: int):
    """Mount the server at ``folder``; at the end it answers, so that nothing hangs any more."""
    server = Server(silent_at)
    data = f"fd={server.fuse},rootmode=40000,user_id=0,group_id=0".encode()
    assert _libc.mount(b"silent", os.fsencode(folder), b"fuse", 0, data) == 0, os.strerror(ctypes.get_errno())
    server.start()
    try:
        yield server
    finally:
        server.come_back()
        _libc.umount2(os.fsencode(folder), _MNT_DETACH)
        server.join(60)
        os.close(server.fuse)


def source_of(*folders: Path, **settings) -> FileSource:
    given = FileSettings(folders=[str(folder) for folder in folders], **settings)
    return FileSource(given, BackEndContext("local", Path("/nowhere")))


async def fetch(source: FileSource, folder: Path) -> bytes:
    async with source.open(ImageUrl.parse(f"file://{folder}/image")) as stream:
        return b"".join([chunk async for chunk in stream])


@pytest.mark.parametrize("silent_at", [LOOKUP, OPEN, READ, FLUSH], ids=["lookup", "open", "read", "close"])
async def test_server_that_does_not_answer(tmp_path: Path, silent_at: int) -> None:
    """A cancel takes effect at once, a time limit ends the wait, and another folder is served meanwhile."""
    silent, other = tmp_path / "silent", tmp_path / "other"
    silent.mkdir()
    other.mkdir()
    (other / "image").write_bytes(b"image")
    with served(silent, silent_at) as server:
        source = source_of(silent, other)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, source, silent)
            assert await trio.to_thread.run_sync(server.reached.wait, 60)
            assert await fetch(source, other) == b"image"
            nursery.cancel_scope.cancel()
        if silent_at != FLUSH:  # nothing waits for the file to be closed
            with pytest.raises(RemoteUnavailableError, match="did not answer"):
                await fetch(source_of(silent, stall_timeout=Duration(0.1)), silent)
