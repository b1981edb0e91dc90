"""Tests of calls to many hosts at a time: their order, number and time, and faults in one of them."""

from __future__ import annotations

import threading

import pytest

from provisioner.cli.exit_status import CliError, fleet_status
from provisioner.cli.fleet import calls
from provisioner.cli.fleet.calls import Limits, OverrunError, each
from provisioner.cli.fleet.failures import Failure

PLENTY = Limits(8, 60.0)


def test_results_have_the_order_of_the_items():
    """Also if the last is done first."""
    turns = [threading.Event() for _ in range(4)]

    def work(number, _call):
        if number < 3:
            turns[number + 1].wait()
        turns[number].set()
        return number * 10

    came = []
    assert each(range(4), work, PLENTY, lambda number, result: came.append((number, result))) == [0, 10, 20, 30]
    assert sorted(came) == [(0, 0), (1, 10), (2, 20), (3, 30)]


def test_calls_are_bounded_in_number():
    active, highest, lock = 0, 0, threading.Lock()
    full = threading.Barrier(3)  # is reached only if three run at once

    def work(_number, _call):
        nonlocal active, highest
        with lock:
            active += 1
            highest = max(highest, active)
        full.wait()
        with lock:
            active -= 1

    each(range(12), work, Limits(3, 60.0))
    assert highest == 3


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), RecursionError("x"), MemoryError()])
def test_fault_in_one_call(error):
    def work(number, _call):
        if number == 1:
            raise error
        return number

    first, second, third = each(range(3), work, PLENTY)
    assert (first, third) == (0, 2)
    assert isinstance(second, Failure)


def test_error_of_the_client():
    def work(_item, _call):
        raise CliError("no such thing")

    assert each([1], work, PLENTY) == [Failure("unreachable", "no such thing")]


def test_call_that_hangs_is_given_up(monkeypatch):
    """It costs the others nothing, its place is free again, and it sends nothing more when it wakes up."""
    monkeypatch.setattr(calls, "_SLACK", 0.0)
    wake, woke = threading.Event(), threading.Event()
    raised = []

    def work(number, call):
        if number == 0:
            wake.wait()
            try:
                call.beat()
            except OverrunError as error:
                raised.append(error)
            woke.set()
        return number

    hung, *others = each(range(5), work, Limits(1, 0.2))
    assert others == [1, 2, 3, 4]
    assert (hung.error, hung.lost) == ("unreachable", True)
    assert hung.message == "no answer within 0 s"
    wake.set()
    assert woke.wait(60)
    assert len(raised) == 1


def test_beat_starts_the_limit_again():
    call = calls.Call(1000.0)
    before = call.seconds_left()
    call._until -= 999.0
    assert call.seconds_left() < 2
    call.beat()
    assert call.seconds_left() > before - 10
    assert not call.give_up()


def test_no_items():
    assert each([], lambda item, call: item, PLENTY) == []


def test_too_many_threads(monkeypatch):
    def start(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(CliError, match="allows no more threads; lower --parallel"):
        each([1], lambda item, call: item, PLENTY)


@pytest.mark.parametrize(("failed", "status"), [(0, 0), (1, 101), (19, 119), (20, 120), (5000, 120)])
def test_status_counts_and_ends(failed, status):
    assert fleet_status(failed) == status
