"""A server whose response to each path is set by the test, and that records the requested paths."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from tests.servers.threaded import ThreadedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class ScriptedServer:
    """The server's state. ``answers`` maps a path, with or without query, to bytes or to a function that responds."""

    port: int
    answers: dict[str, bytes | Callable[[Handler], None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def of(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


class Handler(BaseHTTPRequestHandler):
    """One request. ``wait_for_disconnect`` waits until the client disconnects or the test ends."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.state.asked.append(self.path)
        answers = self.server.state.answers
        answer = answers.get(self.path, answers.get(self.path.partition("?")[0]))
        if callable(answer):
            answer(self)
            return
        self.head(404 if answer is None else 200, **{"Content-Length": str(len(answer or b""))})
        self.say(answer or b"")

    do_HEAD = do_GET  # noqa: N815 - the library looks the method up by this name

    def head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def say(self, body: bytes) -> None:
        """Send a body, except in response to HEAD."""
        if self.command != "HEAD":
            self.wfile.write(body)

    def wait_for_disconnect(self) -> None:
        self.connection.settimeout(0.05)
        while not self.server.state.over.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """Serve until the block ends."""
    server = ThreadedServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_args: None  # some tests make clients disconnect
    server.state = ScriptedServer(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.state
    finally:
        server.state.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
