"""The host's side of the agent's protocol, which inside/agent describes."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import IO

CONNECT_TIMEOUT = 10  # seconds


class AgentError(Exception):
    """The agent refused a request, or did not answer."""


def request(port: int, timeout: float, body: bytes = b"", **fields: object) -> dict[str, object]:
    """Send a request and return its answer of one line."""
    with _connected(port, timeout) as connection, connection.makefile("rb") as stream:
        connection.sendall(json.dumps(fields).encode() + b"\n" + body)
        return _answer(stream)


def fetch(port: int, timeout: float, path: str) -> bytes:
    """Read a file of the guest."""
    with _connected(port, timeout) as connection, connection.makefile("rb") as stream:
        connection.sendall(json.dumps({"op": "get", "path": path}).encode() + b"\n")
        return _exactly(stream, _number(_answer(stream), "size"))


def run(port: int, fields: dict[str, object], sink: Callable[[bytes], object], silence: float, total: float) -> int:
    """Run a command, pass its output to `sink` as it arrives, and return its status (negative: the signal).

    :param silence: seconds without a byte of output after which the guest counts as hung
    :param total: seconds the command may take
    :raises AgentError: if either limit is exceeded or the guest disconnects
    """
    deadline = time.monotonic() + total
    with _connected(port, silence) as connection, connection.makefile("rb") as stream:
        connection.sendall(json.dumps({"op": "run", **fields}).encode() + b"\n")
        for answer in _answers(stream):
            if "exit" in answer:
                return _number(answer, "exit")
            sink(_exactly(stream, _number(answer, "out")))
            left = deadline - time.monotonic()
            if left <= 0:
                raise AgentError(f"the command took more than {total:.0f} s")
            connection.settimeout(min(silence, left))
    raise AgentError("the guest disconnected")


def _connected(port: int, timeout: float) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), CONNECT_TIMEOUT)
    connection.settimeout(timeout)
    return connection


def _answers(stream: IO[bytes]) -> Iterator[dict[str, object]]:
    while True:
        yield _answer(stream)


def _answer(stream: IO[bytes]) -> dict[str, object]:
    try:
        line = stream.readline()
    except TimeoutError as error:
        raise AgentError("the guest did not answer within the time limit") from error
    except OSError as error:
        raise AgentError(f"the connection to the guest broke: {error}") from error
    if not line:
        raise AgentError("the guest disconnected")
    answer: dict[str, object] = json.loads(line)
    if "error" in answer:
        raise AgentError(f"the agent refused: {answer['error']}")
    return answer


def _number(answer: dict[str, object], key: str) -> int:
    value = answer[key]
    if not isinstance(value, int):
        raise AgentError(f"the agent sent an unexpected answer: {answer!r}")
    return value


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise AgentError("the guest disconnected in the middle of an answer")
    return data
