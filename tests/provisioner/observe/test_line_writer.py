"""Tests of a sink's queue: put never blocks, order is kept, and gaps are counted and reported once."""

from __future__ import annotations

import threading

import pytest

from provisioner.observe.line_writer import LineWriter


class Sink:
    """Accepts lines while ``open`` is set; raises ``fault`` if it is set."""

    def __init__(self):
        self.open, self.entered, self.lines, self.fault = threading.Event(), threading.Event(), [], None
        self.dropped = []

    def write(self, line):
        self.entered.set()
        self.open.wait()
        if self.fault is not None:
            raise self.fault
        self.lines.append(line)

    def writer(self, room=10_000):
        return LineWriter("test", self.write, len, lambda count: f"({count} dropped)", self.dropped.append, room)


@pytest.fixture
def sink():
    made = Sink()
    yield made
    made.open.set()


def test_order_is_kept(sink):
    sink.open.set()
    writer = sink.writer(2**20)
    for number in range(100):
        writer.put(str(number))
    assert writer.flush(30)
    assert sink.lines == [str(number) for number in range(100)]
    assert sink.dropped == []


def test_full_queue_gives_one_notice(sink):
    writer = sink.writer(room=1000)  # room for four lines and their overhead
    writer.put("first")
    sink.entered.wait()
    for number in range(10):
        writer.put(str(number))
    sink.open.set()
    assert writer.flush(30)
    assert sink.lines == ["first", "0", "1", "2", "3", "(6 dropped)"]
    assert sum(sink.dropped) == 6
    writer.put("later")
    assert writer.flush(30)
    assert sink.lines[-1] == "later"


def test_failed_writes_are_reported_later(sink):
    sink.open.set()
    sink.fault = OSError(28, "No space left on device")
    writer = sink.writer()
    writer.put("a")
    writer.put("b")
    assert writer.flush(30)
    assert writer.trouble() == "cannot be written: No space left on device"
    sink.fault = None
    writer.put("c")
    assert writer.flush(30)
    assert sink.lines == ["(2 dropped)", "c"]
    assert sum(sink.dropped) == 2
    assert writer.trouble() is None


def test_hung_sink_close_times_out(sink, monkeypatch):
    monkeypatch.setattr("provisioner.observe.line_writer.HUNG_AFTER", 0.0)
    writer = sink.writer()
    for line in "abc":
        writer.put(line)
    sink.entered.wait()
    assert writer.trouble().startswith("has accepted nothing for ")
    assert not writer.flush(0.01)
    assert not writer.flush(3600)  # returns at once after the first timeout
    assert not writer.close(0.01)
    assert sum(sink.dropped) == 3
    writer.put("too late")
    assert sum(sink.dropped) == 4


def test_bad_item_keeps_thread_running(sink):
    sink.open.set()
    sink.fault = ValueError("not a line")
    writer = sink.writer()
    writer.put("a")
    assert writer.flush(30)
    sink.fault = None
    writer.put("b")
    assert writer.close(30)
    assert sink.lines == ["(1 dropped)", "b"]
