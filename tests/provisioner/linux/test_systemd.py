"""Tests of systemd's protocol over a real socket."""

from __future__ import annotations

import os
import socket

import pytest

from provisioner.linux import systemd


@pytest.fixture
def manager(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_notify(manager):
    systemd.notify("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_notify_on_an_abstract_socket(monkeypatch):
    name = f"lvp-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        systemd.notify("STOPPING=1")
        assert listening.recv(100) == b"STOPPING=1"


def test_notify_without_manager(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")


def test_notify_with_unreachable_manager(manager, monkeypatch):
    for _ in range(10_000):  # far more than the socket's queue can hold; notify must not block
        systemd.notify("WATCHDOG=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    systemd.notify("WATCHDOG=1")


@pytest.mark.parametrize(
    ("pid", "count", "found"),
    [("own", "2", [3, 4]), ("own", "0", []), ("1", "2", []), ("own", "x", []), (None, "2", [])],
)
def test_passed_sockets(monkeypatch, pid, count, found):
    monkeypatch.setenv("LISTEN_FDS", count)
    if pid is None:
        monkeypatch.delenv("LISTEN_PID", raising=False)
    else:
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "own" else pid)
    assert systemd.passed_sockets() == found


@pytest.mark.parametrize(
    ("allowed", "pid", "interval"),
    [("30000000", None, 15.0), ("30000000", "own", 15.0), ("30000000", "1", None), ("", None, None), ("x", None, None)],
)
def test_watchdog_interval(monkeypatch, allowed, pid, interval):
    monkeypatch.setenv("WATCHDOG_USEC", allowed)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert systemd.watchdog_interval() == interval
