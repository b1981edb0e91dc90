"""Servers that are not what a client hopes for: silent, dripping, endless, of another kind."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INTERNAL_ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    b'{"error":"internal error","message":"the service failed","code":500}'
)
PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html><body>Hello</body></html>"
OTHER_JSON = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{"jobs": 5, "count": []}'


@contextmanager
def broken_server(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Serve each connection with ``serve``, which also gets an event that the end sets; yield ``HOST:PORT``."""
    stopped = threading.Event()
    threads: list[threading.Thread] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_one(connection: socket.socket) -> None:
        with connection:
            try:
                serve(connection, stopped)
            except OSError:  # the client has gone
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve_one, args=(connection,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def silent(connection: socket.socket, stopped: threading.Event) -> None:
    """Accept, and never answer."""
    del connection
    stopped.wait()


def dripping(connection: socket.socket, stopped: threading.Event) -> None:
    """Send a byte of an endless header now and then, so that no time limit of a socket ends the wait."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not stopped.wait(0.2):
        connection.sendall(b"x")


def endless(connection: socket.socket, stopped: threading.Event) -> None:
    """Send a page without an end, as fast as the client takes it."""
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while not stopped.is_set():
        connection.sendall(b" " * 2**20)


def answering(response: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Return a way to serve: the same response to each request."""

    def serve(connection: socket.socket, _stopped: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(response)

    return serve
