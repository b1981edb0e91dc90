"""Fixtures: a real HTTP server that replays the examples of api.yaml, and the command line run against it."""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from provisioner.cli import main, paths
from tests.servers.threaded import ThreadedServer

_DOCUMENT = yaml.load((Path(__file__).parents[3] / "api.yaml").read_text(), yaml.CSafeLoader)
EXAMPLES = {name: example["value"] for name, example in _DOCUMENT["components"]["examples"].items()}


# The answer of a proxy that sends nothing until its server has ended its own.
HELD_BACK = object()


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: object


class Handler(BaseHTTPRequestHandler):
    def replay(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        replay = self.server.replay
        headers = {name.lower(): value for name, value in self.headers.items()}
        replay.requests.append(Request(self.command, self.path, headers, body))
        status, answer = replay.next_answer(self.command, self.path.partition("?")[0])
        if answer is None:
            self.close_connection = True
            return
        if answer is HELD_BACK:
            self.close_connection = True
            self.rfile.read(1)  # until the client goes
            return
        is_stream = isinstance(answer, str)
        raw = answer if isinstance(answer, bytes) else answer.encode() if is_stream else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream" if is_stream else "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_PUT = do_DELETE = replay  # noqa: N815

    def log_message(self, *args):
        pass


@dataclass
class Replay:
    """Answers in the given order; the last answer is repeated for ever."""

    requests: list[Request] = field(default_factory=list)
    answers: dict[tuple[str, str], deque] = field(default_factory=dict)
    tls: object = None
    port: int = 0
    _server: ThreadedServer | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}"

    def on(self, method, path, *answers, status=200):
        """Set answers: an example's name, an object, bytes, None for a lost connection; or a status and one of them.

        Examples that are text are event streams.
        """
        pairs = [answer if isinstance(answer, tuple) else (status, answer) for answer in answers]
        self.answers[method, path] = deque(
            (code, EXAMPLES[answer] if isinstance(answer, str) else answer) for code, answer in pairs
        )

    def next_answer(self, method, path):
        answers = self.answers.get((method, path))
        if answers is None:
            return 404, {"error": "not found", "message": f"no route {method} {path}", "code": 404}
        return answers.popleft() if len(answers) > 1 else answers[0]

    def start(self):
        self._server = ThreadedServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = False
        self._server.replay = self
        if self.tls:
            # The handshake happens at the first read, in the connection's own thread.
            self._server.socket = self.tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server.handle_error = lambda *args: None  # some tests cause failing handshakes
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def stop(self):
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@pytest.fixture(scope="session")
def examples():
    """Return the values of api.yaml's examples by name."""
    return EXAMPLES


class Ended(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Set an empty home directory; no settings in the environment or in the system's configuration."""
    for name in ("LVP_URL", "LVP_TOKEN", "LVP_TOKEN_FILE", "LVP_CA", "LVP_CERT", "LVP_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "config").mkdir()
    monkeypatch.setattr(paths, "SYSTEM_CONFIG", tmp_path / "etc" / "config.toml")
    return tmp_path


@pytest.fixture
def server():
    replay = Replay().start()
    yield replay
    replay.stop()


@pytest.fixture
def run(home, capsys):
    """Return a function that runs the command line in this process."""

    def run(*args):
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return Ended(ended.value.code, out, err)

    return run


@pytest.fixture
def lvp(run, server, monkeypatch):
    """Return a function that runs the command line against the server."""
    monkeypatch.setenv("LVP_URL", server.url)
    monkeypatch.setenv("LVP_TOKEN", "s3cret")
    return run
