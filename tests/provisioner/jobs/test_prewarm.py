"""Prewarmed images are fetched at the start and on schedule, with the lowest priority."""

import trio
import trio.testing

from provisioner.config import PrewarmSettings
from provisioner.contracts import Duration
from provisioner.contracts.errors import TooManyRequestsError
from provisioner.jobs.prewarm import prewarm

HOUR = 3600


class Submitted(list):
    """Stands in for a supervisor; refuses the first ``refusals`` submits."""

    def __init__(self, refusals=0):
        self.refusals = refusals

    async def submit(self, spec, *, request_id, principal, idempotency_key):
        await trio.lowlevel.checkpoint()
        self.append((trio.current_time(), spec, principal))
        if len(self) <= self.refusals:
            raise TooManyRequestsError("full")


def an_image(name="a", every=HOUR):
    return PrewarmSettings(url=f"https://images.example/{name}.qcow2", every=Duration(every))


async def run_for(seconds, submitted, images):
    with trio.move_on_after(seconds):
        await prewarm(submitted, images)


async def test_prewarm_at_start_and_on_schedule(autojump_clock):
    submitted = Submitted()
    await run_for(2.5 * HOUR, submitted, [an_image("a"), an_image("b", 2 * HOUR)])
    asked = sorted((round(at), spec.image_url.text[-7]) for at, spec, _ in submitted)
    assert asked == [(0, "a"), (0, "b"), (HOUR, "a"), (2 * HOUR, "a"), (2 * HOUR, "b")]


async def test_prewarm_job_has_lowest_priority(autojump_clock):
    submitted = Submitted()
    await run_for(1, submitted, [an_image()])
    ((_, spec, principal),) = submitted
    assert (spec.priority, spec.volume_name, principal) == (-1000, None, "prewarm")


async def test_prewarm_retries_after_a_refusal(autojump_clock):
    submitted = Submitted(refusals=1)
    await run_for(HOUR - 1, submitted, [an_image()])
    assert [round(at) for at, *_ in submitted] == [0, 300]


async def test_prewarm_without_images():
    submitted = Submitted()
    await prewarm(submitted, [])
    assert submitted == []
