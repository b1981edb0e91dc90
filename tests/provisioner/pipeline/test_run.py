# ruff: noqa: ASYNC240 - small files of a test
"""Jobs through the pipeline: what is staged, what is refused before, and what stands at the end."""

import hashlib
import struct
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

from provisioner.contracts import GIB, MIB, VolumeUser
from provisioner.contracts.errors import NoSpaceError
from provisioner.contracts.testing import FakeCloneTarget, FakeConverter, FakeImage, FakeSource, FakeTarget
from provisioner.contracts.types import Placement
from provisioner.jobs import Status
from tests.cancellation.lab import DIGEST, IMAGE, OLD, SPEC, URL, Lab

WEB02 = msgspec.structs.replace(SPEC, volume_name="web02")
WRONG = f"sha256:{'0' * 64}"


def hex_digest(data):
    return hashlib.sha256(data).hexdigest()


def qcow2(size):
    return struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, size).ljust(64 * 1024, b"\0")


async def test_a_volume_is_the_image_and_zeros_after_it(folder):
    lab = Lab(folder)
    async with lab.running():
        job = await lab.run()
        assert job.status is Status.COMPLETED
        assert (job.volume.name, job.volume.size_bytes, job.volume.provisioned_by) == ("web01", GIB, "copy")
        assert not job.cache_hit
        with (lab.target.folder / "web01").open("rb") as file:
            assert file.read(len(IMAGE)) == IMAGE
            assert not any(file.read(4 * MIB))
        assert (await lab.run(WEB02)).cache_hit
        lab.assert_nothing_left()


@pytest.mark.parametrize("tail", [True, False])
async def test_another_s_bytes_are_gone_from_the_tail(folder, monkeypatch, tail):
    """On a device that holds a pattern: zeros to its end, unless the target was told to keep what is there."""
    monkeypatch.setattr("provisioner.jobs.job.GIB", 4 * MIB)
    lab = Lab(folder, target=FakeTarget(folder / "main", name="main", stale=True))
    stage = lab.target.stage

    def stage_as_told(request, *, verified):
        @asynccontextmanager
        async def staging():
            async with stage(request, verified=verified) as staged:
                staged.device = replace(staged.device, zero_tail=tail)
                yield staged

        return staging()

    lab.target.stage = stage_as_told
    async with lab.running():
        assert (await lab.run()).status is Status.COMPLETED
        data = (lab.target.folder / "web01").read_bytes()
        assert len(data) == 4 * MIB
        assert data[: len(IMAGE)] == IMAGE
        assert set(data[len(IMAGE) :]) == ({0} if tail else {0xA5})


@pytest.mark.parametrize(
    ("image", "declared", "words"),
    [
        (qcow2(GIB + 512), "qcow2", "ask for 2 GiB or more"),
        (qcow2(1 << 63), "qcow2", "the image needs"),
        (qcow2(0), "qcow2", "the image is empty"),
        (b"", "raw", "the image is empty"),
        (qcow2(MIB), "raw", "declared as raw but is qcow2"),
        (IMAGE, "qcow2", "declared as qcow2 but is raw"),
        (b"LUKS\xba\xbe\0\1".ljust(MIB, b"\0"), "raw", "LUKS"),
    ],
)
async def test_nothing_is_staged_for_an_image_that_cannot_be_it(folder, image, declared, words):
    """The header is enough; also from the cache."""
    lab = Lab(folder, source=FakeSource({URL: image}))
    spec = msgspec.structs.replace(SPEC, image_type=declared, checksum=None)
    lab.source.images[f"{URL}.sha256"] = FakeImage(hex_digest(image).encode())
    async with lab.running():
        for _ in range(2):
            job = await lab.run(spec)
            assert job.status is Status.FAILED
            assert words in job.error
            assert "stage" not in lab.target.steps.log
            assert "removed" not in job.error  # nothing was staged, so nothing was taken back
        assert lab.volume() is None
        lab.assert_nothing_left()


# --- overlap ---


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("placement", [Placement.SWAP, Placement.IN_PLACE])
async def test_a_mismatch_found_after_everything_was_converted_is_rolled_back(folder, streams, placement):
    """The digest comes last and counts first; in place nothing was written before it."""
    lab = Lab(
        folder,
        target=FakeTarget(folder / "main", name="main", replace=placement),
        converter=FakeConverter(streams=streams),
    )
    lab.put_old_volume()
    async with lab.running():
        job = await lab.run(msgspec.structs.replace(SPEC, checksum=WRONG))
        assert job.status is Status.FAILED
        assert "but " + "0" * 64 + " was expected" in job.error
        overlapped = streams and placement is Placement.SWAP
        assert ("the staged volume was removed" in job.error) == overlapped
        assert ("start" in lab.converter.steps.log) == overlapped
        assert lab.volume() == OLD
        assert "commit" not in lab.target.steps.log
        lab.assert_nothing_left()


async def test_conversion_goes_on_while_the_image_comes(folder, monkeypatch):
    """The first blocks are on the device while the last bytes are still on the server."""
    lab = Lab(folder, converter=FakeConverter(block_size=16 * 1024))
    lab.source.chunk_size = 16 * 1024
    lab.source.at_byte, lab.source.steps.hang_at = len(IMAGE) - 1, "byte"
    # What is small in the image here is large in life: the waker's step, and what the inspector wants to see.
    monkeypatch.setattr("provisioner.download.arrival.WAKE_STEP", 1)
    monkeypatch.setattr("provisioner.download.inspection.WINDOW", 64 * 1024)
    async with lab.running():
        job_id = await lab.submit()
        await lab.source.steps.reached.wait()
        while "block" not in lab.converter.steps.log:
            await trio.lowlevel.checkpoint()
        _, shot = await lab.supervisor.find(job_id)
        assert shot.stage == "downloading"
        await lab.supervisor.cancel(job_id)
        lab.assert_nothing_left()


async def test_the_digest_may_come_long_before_the_converter_ends(folder):
    lab = Lab(folder)
    lab.converter.steps.hang_at = "flush"
    async with lab.running():
        job_id = await lab.submit()
        await lab.converter.steps.reached.wait()
        while not lab.cache.entries():
            await trio.lowlevel.checkpoint()
        assert "commit" not in lab.target.steps.log
        await lab.supervisor.cancel(job_id)
        lab.assert_nothing_left()


async def test_an_image_of_unknown_size_is_taken_whole(folder):
    lab = Lab(folder, source=FakeSource({URL: FakeImage(IMAGE, size=None)}))
    async with lab.running():
        assert (await lab.run()).status is Status.COMPLETED
        assert lab.volume() == IMAGE


async def test_a_cache_only_job_touches_no_target(folder):
    lab = Lab(folder)
    async with lab.running():
        job = await lab.run(msgspec.structs.replace(SPEC, volume_name=None, volume_size_gb=None, target=None))
        assert job.status is Status.COMPLETED
        assert job.volume is None
        assert Path(job.image_path).read_bytes() == IMAGE
        assert lab.target.steps.log == ["recover"]


# --- guards and open volumes ---


@pytest.mark.parametrize("when", ["before", "at commit"])
@pytest.mark.parametrize("who", ["guard", "kernel"])
async def test_a_volume_in_use_is_not_touched(folder, when, who):
    """Asked before anything is fetched, and again when all is ready."""
    lab = Lab(folder)
    lab.put_old_volume()

    def begin_to_use():
        if who == "guard":
            lab.guard.who_uses["web01"] = [VolumeUser("domain", "db1")]
        else:
            lab.target.in_use.add("web01")

    lab.converter.steps.hang_at = "flush" if when == "at commit" else None
    async with lab.running():
        if when == "before":
            begin_to_use()
            job = await lab.run()
            assert lab.source.opens == []
        else:
            at_flush = lab.converter.steps.at

            async def at(step):
                if step == "flush":
                    begin_to_use()
                lab.converter.steps.hang_at = None
                await at_flush(step)

            lab.converter.steps.at = at
            job = await lab.run()
            assert "staged" in lab.target.steps.log
        assert job.status is Status.FAILED
        assert "in use" in job.error
        if who == "guard":
            assert "domain db1" in job.error
        assert lab.volume() == OLD
        lab.assert_nothing_left()


# --- clones ---


def clone_lab(folder):
    return Lab(folder, target=FakeCloneTarget(folder / "main", name="main"))


async def test_the_first_copy_makes_the_base_and_later_ones_ask_nobody(folder):
    lab = clone_lab(folder)
    async with lab.running():
        first = await lab.run()
        assert (first.status, first.volume.provisioned_by, first.cache_hit) == (Status.COMPLETED, "clone", False)
        opened = len(lab.source.opens)
        second = await lab.run(WEB02)
        assert second.volume.provisioned_by == "clone"
        assert second.cache_hit
        assert len(lab.source.opens) == opened
        assert lab.volume("web02") == IMAGE
        assert lab.target.steps.log.count("stage_base") == 1
        lab.assert_nothing_left()


async def test_two_jobs_at_once_make_one_base(folder):
    lab = clone_lab(folder)
    async with lab.running():
        ids = [await lab.submit(), await lab.submit(WEB02)]
        assert [(await lab.ended(job_id)).status for job_id in ids] == [Status.COMPLETED] * 2
        assert lab.target.steps.log.count("stage_base") == 1
        assert len(lab.source.opens) == 1
        assert lab.volume() == lab.volume("web02") == IMAGE


async def test_who_waits_for_a_base_makes_it_when_its_maker_is_cancelled(folder):
    lab = clone_lab(folder)
    lab.converter.steps.hang_at = "flush"
    async with lab.running():
        first = await lab.submit()
        await lab.converter.steps.reached.wait()
        second = await lab.submit(WEB02)
        while sum(flight.users for flight in lab.cache._flights._by_key.values()) not in {0, 2}:
            await trio.lowlevel.checkpoint()
        lab.converter.steps.hang_at = None
        await lab.supervisor.cancel(first)
        assert (await lab.ended(second)).status is Status.COMPLETED
        assert lab.volume() is None
        assert lab.volume("web02") == IMAGE


async def test_a_base_of_a_lie_is_not_made(folder):
    lab = clone_lab(folder)
    async with lab.running():
        job = await lab.run(msgspec.structs.replace(SPEC, checksum=WRONG))
        assert job.status is Status.FAILED
        assert list(lab.target._base_folder().iterdir()) == []
        lab.assert_nothing_left()


async def test_what_can_only_be_overwritten_is_copied_where_others_are_cloned(folder):
    """Also where the base is known, and its image is no longer looked for."""
    lab = Lab(folder, target=FakeCloneTarget(folder / "main", name="main", replace=Placement.IN_PLACE))
    lab.put_old_volume()
    async with lab.running():
        for _ in range(2):
            job = await lab.run()
            assert (job.status, job.volume.provisioned_by) == (Status.COMPLETED, "copy")
            assert lab.volume() == IMAGE
        assert lab.target.steps.log.count("stage_base") == 1
        assert (await lab.run(WEB02)).volume.provisioned_by == "clone"
        lab.assert_nothing_left()


@pytest.mark.parametrize("step", ["stage_base", "stage_clone"])
async def test_no_room_for_a_clone_is_no_reason_to_copy_where_a_copy_needs_more(folder, step):
    full = NoSpaceError("the pool is full")
    lab = Lab(folder, target=FakeCloneTarget(folder / "main", name="main", fail_at={step: full}))
    lab.put_old_volume()
    async with lab.running():
        job = await lab.run()
        assert (job.status, lab.volume()) == (Status.FAILED, OLD)
        assert "the pool is full" in job.error
        assert "stage" not in lab.target.steps.log
        lab.assert_nothing_left()


async def test_a_clone_too_small_for_its_base_is_refused(folder):
    lab = Lab(folder, source=FakeSource({URL: qcow2(2 * GIB)}), target=FakeCloneTarget(folder / "main", name="main"))
    digest = f"sha256:{hex_digest(qcow2(2 * GIB))}"
    spec = msgspec.structs.replace(SPEC, image_type="qcow2", checksum=digest)
    async with lab.running():
        assert (await lab.run(msgspec.structs.replace(spec, volume_size_gb=2))).status is Status.COMPLETED
        job = await lab.run(msgspec.structs.replace(spec, volume_name="web02"))
        assert "ask for 2 GiB or more" in job.error
        assert lab.volume("web02") is None


@pytest.mark.parametrize("where", ["request", "sidecar", "nowhere"])
async def test_somebody_must_vouch_for_an_image(folder, where):
    images = {URL: IMAGE, **({f"{URL}.sha256": DIGEST[7:].encode()} if where == "sidecar" else {})}
    lab = Lab(folder, source=FakeSource(images))
    async with lab.running():
        job = await lab.run(msgspec.structs.replace(SPEC, checksum=DIGEST if where == "request" else None))
        if where == "nowhere":
            assert "no checksum is known" in job.error
            assert lab.volume() is None
        else:
            assert job.status is Status.COMPLETED
