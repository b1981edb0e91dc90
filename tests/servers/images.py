"""A plain HTTP server for image files, in threads: counts downloads, and can hold back the end of a file."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler
from typing import TYPE_CHECKING

from tests.servers.threaded import ThreadedServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHUNK = 64 * 1024


@dataclass
class ImageServer:
    """``url`` has no trailing slash. Of each file in ``held`` only that many bytes are sent until ``let_go`` is set."""

    url: str
    root: Path
    held: dict[str, int] = field(default_factory=dict)
    fetched: Counter[str] = field(default_factory=Counter)
    holding: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)

    def of(self, name: str) -> str:
        return f"{self.url}/{name}"


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.headers.get("Range") == "bytes=0-0":  # only looked at, and this server knows no ranges
            self.do_HEAD()
            return
        self.server.images.fetched[self.path.lstrip("/")] += 1
        super().do_GET()

    def copyfile(self, source, outputfile) -> None:
        images, limit = self.server.images, self.server.images.held.get(self.path.lstrip("/"))
        sent = 0
        while chunk := source.read(_CHUNK if limit is None else max(1, min(_CHUNK, limit - sent))):
            outputfile.write(chunk)
            sent += len(chunk)
            if limit is not None and sent >= limit:
                images.holding.set()
                if not self._wait():
                    return
                limit = None

    def _wait(self) -> bool:
        """Wait until the rest may be sent; return False if the client disconnects first."""
        self.connection.setblocking(False)
        try:
            while not self.server.images.let_go.is_set():
                try:
                    if self.connection.recv(1) == b"":
                        return False
                except BlockingIOError:
                    time.sleep(0.01)
        except OSError:
            return False
        finally:
            self.connection.setblocking(True)
        return True

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def image_server(root: Path) -> Iterator[ImageServer]:
    """Serve ``root`` until the block ends."""
    server = ThreadedServer(("127.0.0.1", 0), partial(_Handler, directory=str(root)))
    server.handle_error = lambda *_args: None  # some tests disconnect on purpose
    server.images = ImageServer(f"http://127.0.0.1:{server.server_port}", root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.images
    finally:
        server.images.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()
