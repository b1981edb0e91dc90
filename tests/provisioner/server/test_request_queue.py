"""Tests that concurrent requests without a credential are limited per address."""

from __future__ import annotations

import httpx
import pytest
import trio
import trio.testing

from provisioner.server.request_queue import RequestQueue
from tests.provisioner.api.served import served


class Answers:
    """Requests that stay in progress until ``go`` is set."""

    def __init__(self):
        self.queue = RequestQueue(at_once=2)
        self.running: list[str] = []
        self.go = trio.Event()

    async def ask(self, address, path):
        async with self.queue.turn(address, path):
            self.running.append(f"{address} {path}")
            await self.go.wait()


async def test_turn_limit_per_address():
    answers = Answers()
    async with trio.open_nursery() as nursery:
        for address in ("a", "b"):
            for _ in range(5):
                nursery.start_soon(answers.ask, address, "/metrics")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(answers.running) == ["a /metrics"] * 2 + ["b /metrics"] * 2
        answers.go.set()
    assert len(answers.running) == 10
    assert len(answers.queue) == 0


async def test_turn_limit_per_path():
    answers = Answers()
    async with trio.open_nursery() as nursery:
        for path in ("/readyz", "/metrics", "/health"):
            for _ in range(3):
                nursery.start_soon(answers.ask, "a", path)
        await trio.testing.wait_all_tasks_blocked()
        assert len(answers.running) == 6
        nursery.cancel_scope.cancel()
    assert len(answers.queue) == 0


async def test_turn_is_free_while_sending():
    """A client that does not read its response delays no other client."""
    answers = Answers()
    async with answers.queue.turn("a", "/metrics") as leave, answers.queue.turn("a", "/metrics"):
        leave()
        leave()
        answers.go.set()
        with trio.fail_after(60):
            await answers.ask("a", "/metrics")
        async with trio.open_nursery() as nursery:
            answers.go = trio.Event()
            for _ in range(3):
                nursery.start_soon(answers.ask, "a", "/metrics")
            await trio.testing.wait_all_tasks_blocked()
            assert len(answers.running) == 2  # only one place was freed
            answers.go.set()
    assert len(answers.queue) == 0


@pytest.mark.parametrize("http2", [False, True])
async def test_metrics_requests_over_http(service, http2):
    """On real connections, two run at once; a caller with a token does not wait."""
    at_once = most = 0
    gate = trio.Event()

    async def counted(response):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await gate.wait()
        at_once -= 1
        return response

    service.app.after_request(counted)
    async with (
        served(service) as (url, _),
        httpx.AsyncClient(base_url=url, http1=not http2, http2=http2, trust_env=False) as client,
    ):
        statuses = []

        async def ask(**more):
            statuses.append((await client.get("/metrics", **more)).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
            with trio.fail_after(30):
                while at_once < 2:  # noqa: ASYNC110 - real traffic
                    await trio.sleep(0.001)
            nursery.start_soon(lambda: ask(headers={"X-API-Token": service.token["viewer"]}))
            with trio.fail_after(30):
                while at_once < 3:  # noqa: ASYNC110 - real traffic
                    await trio.sleep(0.001)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert most == 3
            gate.set()
    assert statuses == [200] * 11
