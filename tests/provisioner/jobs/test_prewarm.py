"""Prewarmed images are asked for at the start and on schedule, behind everybody else."""

import trio
import trio.testing

from provisioner.config import PrewarmSettings
from provisioner.contracts import Duration
from provisioner.contracts.errors import TooManyRequestsError
from provisioner.jobs.prewarm import prewarm

HOUR = 3600


class Submitted(list):
    """Takes what a supervisor would; refuses the first ``refusals`` of it."""

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


async def test_each_image_at_the_start_and_then_on_its_own_schedule(autojump_clock):
    submitted = Submitted()
    await run_for(2.5 * HOUR, submitted, [an_image("a"), an_image("b", 2 * HOUR)])
    asked = sorted((round(at), spec.image_url.text[-7]) for at, spec, _ in submitted)
    assert asked == [(0, "a"), (0, "b"), (HOUR, "a"), (2 * HOUR, "a"), (2 * HOUR, "b")]


async def test_they_wait_behind_everybody_and_make_no_volume(autojump_clock):
    submitted = Submitted()
    await run_for(1, submitted, [an_image()])
    ((_, spec, principal),) = submitted
    assert (spec.priority, spec.volume_name, principal) == (-1000, None, "prewarm")


async def test_a_refusal_is_tried_again_sooner(autojump_clock):
    submitted = Submitted(refusals=1)
    await run_for(HOUR - 1, submitted, [an_image()])
    assert [round(at) for at, *_ in submitted] == [0, 300]


async def test_no_images_means_no_work():
    submitted = Submitted()
    await prewarm(submitted, [])
    assert submitted == []
