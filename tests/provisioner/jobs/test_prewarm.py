"""Prewarmed images are fetched at the start and on schedule, with the lowest priority."""

import trio
import trio.testing

from provisioner.config import PrewarmSettings
from provisioner.contracts import Duration, ImageUrl
from provisioner.contracts.errors import RemoteUnavailableError, TooManyRequestsError
from provisioner.jobs import JobSpec
from provisioner.jobs.prewarm import prewarm

HOUR = 3600


class Submitted(list):
    """Stands in for a supervisor; refuses the first ``refusals`` submits."""

    def __init__(self, refusals=0):
        self.refusals = refusals

    async def submit(self, spec, *, request_id, principal, idempotency_key, request):
        await trio.lowlevel.checkpoint()
        self.append((trio.current_time(), spec, principal))
        self.request = request
        if len(self) <= self.refusals:
            raise TooManyRequestsError("full")


def an_image(name="a", every=HOUR):
    return PrewarmSettings(url=f"https://images.example/{name}.qcow2", every=Duration(every))


class Publisher:
    """Offers another image under the same name each time; ``down``: the calls at which it does not answer."""

    def __init__(self, down=()):
        self.calls, self.down = 0, down

    async def __call__(self, name):
        await trio.lowlevel.checkpoint()
        self.calls += 1
        if self.calls in self.down:
            raise RemoteUnavailableError("no answer")
        return JobSpec(image_url=ImageUrl.parse(f"https://images.example/{name}-{self.calls}.raw"), image_format="raw")


async def run_for(seconds, submitted, images, named=None):
    with trio.move_on_after(seconds):
        await prewarm(submitted, images, named)


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


async def test_prewarm_by_name(autojump_clock):
    """Each time the name is resolved anew; a publisher that does not answer is asked again soon."""
    submitted = Submitted()
    image = PrewarmSettings(image="debian-12", every=Duration(HOUR))
    await run_for(1.5 * HOUR, submitted, [image], Publisher(down=(2,)))
    asked = [(round(at), spec.image_url.file_name, spec.image_format, spec.priority) for at, spec, _ in submitted]
    assert asked == [(0, "debian-12-1.raw", "raw", -1000), (HOUR + 300, "debian-12-3.raw", "raw", -1000)]
    assert submitted.request == {"image": "debian-12", "image_type": "raw", "priority": -1000}


async def test_prewarm_without_images():
    submitted = Submitted()
    await prewarm(submitted, [], None)
    assert submitted == []
