"""A proxy that answers as a later version of the service may: every object in a response has a field more."""

from __future__ import annotations

import json
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Objects whose keys are names of stages and targets, not fields.
_MAPS = {"timings", "unavailable"}
_PASSED_ON = {"x-api-token", "content-type", "idempotency-key", "accept"}
_PASSED_BACK = {"content-type", "x-request-id", "location", "retry-after"}


def grown(value: Any) -> Any:
    """Return a JSON value with a field more in each object."""
    if isinstance(value, list):
        return [grown(one) for one in value]
    if not isinstance(value, dict):
        return value
    fields = {name: one if name in _MAPS else grown(one) for name, one in value.items()}
    return {**fields, "added_later": {"list": [1], "text": "new"}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() in _PASSED_ON}
        answer = self.server.client.request(self.command, self.path, content=body, headers=headers)
        content = json.dumps(grown(answer.json())).encode()
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() in _PASSED_BACK:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _pass_on  # noqa: N815

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def later_version(url: str, ca: Path) -> Iterator[str]:
    """Run the proxy for the service at ``url`` until the block ends; yield its own url, of plain HTTP on loopback."""
    tls = ssl.create_default_context(cafile=str(ca))
    with httpx.Client(base_url=url, verify=tls, trust_env=False, timeout=60) as client:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        server.client = client
        server.daemon_threads = True  # a client may keep its connection open
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
