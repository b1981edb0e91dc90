"""The server of the tests keeps connections that it has not accepted yet."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler

from tests.servers.threaded import ThreadedServer


def test_connections_wait_to_be_accepted():
    with ThreadedServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server, ExitStack() as connections:
        for _ in range(20):  # nothing accepts them
            connections.enter_context(socket.create_connection(server.server_address, timeout=0.5))
