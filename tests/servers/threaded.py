"""An HTTP server in threads that many connections can be opened to at once."""

from __future__ import annotations

from http.server import ThreadingHTTPServer


class ThreadedServer(ThreadingHTTPServer):
    """Serve each connection in a thread.

    The standard library's server has room for 6 connections that are not accepted yet. The kernel drops the next one,
    and the client tries again after a second: by then, a short timeout has passed.
    """

    request_queue_size = 128
