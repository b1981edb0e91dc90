"""A receiver of webhooks, written with the library that Standard Webhooks publishes for receivers."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.servers.threaded import ThreadedServer


@dataclass
class Receiver:
    """``received`` has (id, verified body) of each message; ``statuses`` are the next answers, then 204."""

    secret: str
    port: int = 0
    received: list[tuple[str, dict]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?key=hidden"

    def take(self, headers, body) -> int:
        with self.arrived:
            self.headers.append(headers)
            if self.statuses and (status := self.statuses.pop(0)) != 204:
                return status
            try:
                verified = Webhook(self.secret).verify(body, headers)
            except WebhookVerificationError as error:
                self.refused.append(str(error))
                return 400
            self.received.append((headers["webhook-id"], verified))
            self.arrived.notify_all()
            return 204

    def wait(self, kind, seconds=90):
        """Wait for a message of the kind; return (id, body) of the first."""

        def found():
            return next((one for one in self.received if one[1]["type"] == kind), None)

        with self.arrived:
            assert self.arrived.wait_for(found, seconds), f"no {kind} among {self.received}"
            return found()

    @contextmanager
    def running(self):
        """Listen while the block runs, each time on the same port."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.take({name.lower(): value for name, value in self.headers.items()}, body)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        server = ThreadedServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
