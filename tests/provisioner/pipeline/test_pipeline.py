# ruff: noqa: ASYNC240 - small files of a test
"""Jobs through the pipeline: what is refused, what is staged, and the volume at the end."""

import hashlib
import struct
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

from lvp_source_http import HttpSettings, HttpSource
from provisioner.contracts import GIB, MIB, BackEndContext, Checksum, ImageUrl, VolumeUser
from provisioner.contracts.errors import BaseExistsError, NoSpaceError
from provisioner.contracts.testing import FakeCloneTarget, FakeConverter, FakeImage, FakeSource, FakeTarget
from provisioner.contracts.types import Placement
from provisioner.jobs import Status
from tests.cancellation.harness import DIGEST, IMAGE, OLD, SPEC, URL, Harness
from tests.servers.raw import holds, raw_server

WEB02 = msgspec.structs.replace(SPEC, volume_name="web02")
WRONG = Checksum("sha256", "0" * 64)


def hex_digest(data):
    return hashlib.sha256(data).hexdigest()


def qcow2(size):
    return struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, size).ljust(64 * 1024, b"\0")


async def test_volume_has_the_image_and_zeros(folder):
    harness = Harness(folder)
    async with harness.running():
        job = await harness.run()
        assert job.status is Status.COMPLETED
        assert (job.volume.name, job.volume.size_bytes, job.volume.provisioned_by) == ("web01", GIB, "copy")
        assert not job.cache_hit
        with (harness.target.folder / "web01").open("rb") as file:
            assert file.read(len(IMAGE)) == IMAGE
            assert not any(file.read(4 * MIB))
        assert (await harness.run(WEB02)).cache_hit
        harness.assert_nothing_left()


@pytest.mark.parametrize("tail", [True, False])
async def test_tail_is_zeroed_on_a_reused_device(folder, tail):
    """The rest of a used device is zeroed, unless the target keeps stale data."""
    harness = Harness(folder, target=FakeTarget(folder / "main", name="main", stale=True))
    stage = harness.target.stage

    def stage_as_told(request, *, verified):
        @asynccontextmanager
        async def staging():
            async with stage(request, verified=verified) as staged:
                staged.device = replace(staged.device, zero_tail=tail)
                yield staged

        return staging()

    harness.target.stage = stage_as_told
    async with harness.running():
        assert (await harness.run(msgspec.structs.replace(SPEC, size_bytes=4 * MIB))).status is Status.COMPLETED
        data = (harness.target.folder / "web01").read_bytes()
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
async def test_unsuitable_image_is_not_staged(folder, image, declared, words):
    """The header suffices, also for a cached image."""
    harness = Harness(folder, source=FakeSource({URL: image}))
    spec = msgspec.structs.replace(SPEC, image_format=declared, checksum=None)
    harness.source.images[f"{URL}.sha256"] = FakeImage(hex_digest(image).encode())
    async with harness.running():
        for _ in range(2):
            job = await harness.run(spec)
            assert job.status is Status.FAILED
            assert words in job.error
            assert "stage" not in harness.target.steps.log
            assert "removed" not in job.error  # nothing was staged, so nothing was rolled back
        assert harness.volume() is None
        harness.assert_nothing_left()


# --- overlap ---


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("placement", [Placement.SWAP, Placement.IN_PLACE])
async def test_digest_mismatch_after_conversion(folder, streams, placement):
    """A mismatch found last rolls everything back; in place nothing is written before the digest matched."""
    harness = Harness(
        folder,
        target=FakeTarget(folder / "main", name="main", replace=placement),
        converter=FakeConverter(streams=streams),
    )
    harness.put_old_volume()
    async with harness.running():
        job = await harness.run(msgspec.structs.replace(SPEC, checksum=WRONG))
        assert job.status is Status.FAILED
        assert "but " + "0" * 64 + " was expected" in job.error
        overlapped = streams and placement is Placement.SWAP
        assert ("the staged volume was removed" in job.error) == overlapped
        assert ("start" in harness.converter.steps.log) == overlapped
        assert harness.volume() == OLD
        assert "commit" not in harness.target.steps.log
        harness.assert_nothing_left()


async def test_conversion_overlaps_download(folder, monkeypatch):
    """The first blocks are on the device while the last bytes are still on the server."""
    harness = Harness(folder, converter=FakeConverter(block_size=16 * 1024))
    harness.source.chunk_size = 16 * 1024
    harness.source.at_byte, harness.source.steps.hang_at = len(IMAGE) - 1, "byte"
    # The test's image is smaller than the real wake step and inspection window.
    monkeypatch.setattr("provisioner.download.growing_file.WAKE_STEP", 1)
    monkeypatch.setattr("provisioner.download.inspection.WINDOW", 64 * 1024)
    async with harness.running():
        job_id = await harness.submit()
        await harness.source.steps.reached.wait()
        while "block" not in harness.converter.steps.log:
            await trio.lowlevel.checkpoint()
        _, shot = await harness.supervisor.find(job_id)
        assert shot.stage == "downloading"
        await harness.supervisor.cancel(job_id)
        harness.assert_nothing_left()


async def test_digest_known_before_conversion_ends(folder):
    harness = Harness(folder)
    harness.converter.steps.hang_at = "flush"
    async with harness.running():
        job_id = await harness.submit()
        await harness.converter.steps.reached.wait()
        while not harness.cache.entries():
            await trio.lowlevel.checkpoint()
        assert "commit" not in harness.target.steps.log
        await harness.supervisor.cancel(job_id)
        harness.assert_nothing_left()


async def test_image_of_unknown_size(folder):
    harness = Harness(folder, source=FakeSource({URL: FakeImage(IMAGE, size=None)}))
    async with harness.running():
        assert (await harness.run()).status is Status.COMPLETED
        assert harness.volume() == IMAGE


async def test_fetch_touches_no_target(folder):
    harness = Harness(folder)
    async with harness.running():
        job = await harness.run(msgspec.structs.replace(SPEC, volume_name=None, size_bytes=0, target=None))
        assert job.status is Status.COMPLETED
        assert job.volume is None
        assert Path(job.image_path).read_bytes() == IMAGE
        assert harness.target.steps.log == ["recover"]


# --- guards and open volumes ---


@pytest.mark.parametrize("when", ["before", "at commit"])
@pytest.mark.parametrize("who", ["guard", "kernel"])
async def test_volume_in_use_is_not_touched(folder, when, who):
    """Checked before anything is downloaded, and again before the commit."""
    harness = Harness(folder)
    harness.put_old_volume()

    def begin_to_use():
        if who == "guard":
            harness.guard.who_uses["web01"] = [VolumeUser("domain", "db1")]
        else:
            harness.target.in_use.add("web01")

    harness.converter.steps.hang_at = "flush" if when == "at commit" else None
    async with harness.running():
        if when == "before":
            begin_to_use()
            job = await harness.run()
            assert harness.source.opens == []
        else:
            at_flush = harness.converter.steps.at

            async def at(step):
                if step == "flush":
                    begin_to_use()
                harness.converter.steps.hang_at = None
                await at_flush(step)

            harness.converter.steps.at = at
            job = await harness.run()
            assert "staged" in harness.target.steps.log
        assert job.status is Status.FAILED
        assert "in use" in job.error
        if who == "guard":
            assert "domain db1" in job.error
        assert harness.volume() == OLD
        harness.assert_nothing_left()


# --- clones ---


def clone_harness(folder):
    return Harness(folder, target=FakeCloneTarget(folder / "main", name="main"))


async def test_first_copy_makes_the_base(folder):
    harness = clone_harness(folder)
    async with harness.running():
        first = await harness.run()
        assert (first.status, first.volume.provisioned_by, first.cache_hit) == (Status.COMPLETED, "clone", False)
        opened = len(harness.source.opens)
        second = await harness.run(WEB02)
        assert second.volume.provisioned_by == "clone"
        assert second.cache_hit
        assert len(harness.source.opens) == opened
        assert harness.volume("web02") == IMAGE
        assert harness.target.steps.log.count("stage_base") == 1
        harness.assert_nothing_left()


async def test_concurrent_jobs_make_one_base(folder):
    harness = clone_harness(folder)
    async with harness.running():
        ids = [await harness.submit(), await harness.submit(WEB02)]
        assert [(await harness.ended(job_id)).status for job_id in ids] == [Status.COMPLETED] * 2
        assert harness.target.steps.log.count("stage_base") == 1
        assert len(harness.source.opens) == 1
        assert harness.volume() == harness.volume("web02") == IMAGE


async def test_base_after_its_maker_is_cancelled(folder):
    harness = clone_harness(folder)
    harness.converter.steps.hang_at = "flush"
    async with harness.running():
        first = await harness.submit()
        await harness.converter.steps.reached.wait()
        second = await harness.submit(WEB02)
        while sum(download.users for download in harness.cache._downloads._by_key.values()) not in {0, 2}:
            await trio.lowlevel.checkpoint()
        harness.converter.steps.hang_at = None
        await harness.supervisor.cancel(first)
        assert (await harness.ended(second)).status is Status.COMPLETED
        assert harness.volume() is None
        assert harness.volume("web02") == IMAGE


async def test_base_with_a_wrong_digest_is_not_made(folder):
    harness = clone_harness(folder)
    async with harness.running():
        job = await harness.run(msgspec.structs.replace(SPEC, checksum=WRONG))
        assert job.status is Status.FAILED
        assert list(harness.target._base_folder().iterdir()) == []
        harness.assert_nothing_left()


async def test_in_place_volume_is_copied_not_cloned(folder):
    """Also if the base is known and its image is not looked up any more."""
    harness = Harness(folder, target=FakeCloneTarget(folder / "main", name="main", replace=Placement.IN_PLACE))
    harness.put_old_volume()
    async with harness.running():
        for _ in range(2):
            job = await harness.run()
            assert (job.status, job.volume.provisioned_by) == (Status.COMPLETED, "copy")
            assert harness.volume() == IMAGE
        assert harness.target.steps.log.count("stage_base") == 1
        assert (await harness.run(WEB02)).volume.provisioned_by == "clone"
        harness.assert_nothing_left()


@pytest.mark.parametrize("step", ["stage_base", "stage_clone"])
async def test_no_room_for_a_clone(folder, step):
    full = NoSpaceError("the pool is full")
    harness = Harness(folder, target=FakeCloneTarget(folder / "main", name="main", fail_at={step: full}))
    harness.put_old_volume()
    async with harness.running():
        job = await harness.run()
        assert (job.status, harness.volume()) == (Status.FAILED, OLD)
        assert "the pool is full" in job.error
        assert "stage" not in harness.target.steps.log
        harness.assert_nothing_left()


@pytest.mark.parametrize("step", ["stage_base", "commit"])
async def test_base_that_another_host_has_made(folder, step):
    """It is cloned, whether this host waited for it or lost the race at its own commit."""
    harness = clone_harness(folder)

    async def made_elsewhere():
        harness.target.steps.act_at = {}
        base = harness.target._base_path(f"sha256:{DIGEST}" if ":" not in DIGEST else DIGEST, SPEC.image_format)
        base.write_bytes(IMAGE)
        raise BaseExistsError("another host has made the base")

    harness.target.steps.act_at = {step: made_elsewhere}
    async with harness.running():
        job = await harness.run()
        assert (job.status, job.volume.provisioned_by) == (Status.COMPLETED, "clone")
        assert harness.volume() == IMAGE
        harness.assert_nothing_left()


async def test_clone_target_that_must_copy(folder):
    harness = clone_harness(folder)
    harness.target.copy_reason = "no reflinks"
    async with harness.running():
        for spec in (SPEC, WEB02):
            assert (await harness.run(spec)).volume.provisioned_by == "copy"
        assert harness.volume() == harness.volume("web02") == IMAGE
        assert not {"stage_base", "stage_clone"} & set(harness.target.steps.log)
        harness.assert_nothing_left()


@pytest.mark.parametrize("cached", [True, False])
async def test_base_vanishes_before_it_is_cloned(folder, cached):
    """The volume is copied, from the cache or after a download."""
    harness = clone_harness(folder)
    async with harness.running():
        assert (await harness.run()).volume.provisioned_by == "clone"
        if not cached:
            await harness.cache.remove(DIGEST)

        async def remove_base():
            for path in harness.target._base_folder().iterdir():
                path.unlink()

        harness.target.steps.act_at = {"stage_clone": remove_base}
        job = await harness.run(WEB02)
        assert (job.status, job.volume.provisioned_by) == (Status.COMPLETED, "copy")
        assert harness.volume("web02") == IMAGE
        harness.assert_nothing_left()


async def test_clone_without_room_for_the_base_is_copied(folder):
    harness = Harness(
        folder, target=FakeCloneTarget(folder / "main", name="main", fail_at={"stage_clone": NoSpaceError("full")})
    )

    async def fill_up():
        harness.target.copy_reason = "no room for a clone"

    harness.target.steps.act_at = {"base": fill_up}
    async with harness.running():
        assert (await harness.run()).volume.provisioned_by == "copy"
        assert harness.volume() == IMAGE
        harness.assert_nothing_left()


async def test_clone_smaller_than_its_base(folder):
    harness = Harness(
        folder, source=FakeSource({URL: qcow2(2 * GIB)}), target=FakeCloneTarget(folder / "main", name="main")
    )
    digest = Checksum("sha256", hex_digest(qcow2(2 * GIB)))
    spec = msgspec.structs.replace(SPEC, image_format="qcow2", checksum=digest)
    async with harness.running():
        assert (await harness.run(msgspec.structs.replace(spec, size_bytes=2 * GIB))).status is Status.COMPLETED
        job = await harness.run(msgspec.structs.replace(spec, volume_name="web02"))
        assert "ask for 2 GiB or more" in job.error
        assert harness.volume("web02") is None


@pytest.mark.parametrize(
    ("sidecar", "warning"),
    [
        (b"<!doctype html><html>please sign in</html>", "disk.raw.sha256: it is a web page, not a list of digests"),
        (b"", "disk.raw.sha256: it contains no sha256 digest"),
        (None, None),
    ],
)
async def test_unverified_image_with_a_useless_sidecar(folder, sidecar, warning):
    """The client is told which file was there and did not help; without any file there is nothing to tell."""
    files = {} if sidecar is None else {f"{URL}.sha256": sidecar}
    harness = Harness(folder, source=FakeSource({URL: IMAGE, **files}))
    async with harness.running():
        harness.pipeline.require_checksum = False
        job = await harness.run(msgspec.structs.replace(SPEC, checksum=None))
        assert job.status is Status.COMPLETED
        if warning is None:
            assert job.warnings is None
        else:
            (said,) = job.warnings
            assert said.startswith(f"{URL} was not verified")
            assert said.endswith(warning)


@pytest.mark.parametrize("where", ["request", "sidecar", "nowhere"])
async def test_image_without_required_checksum(folder, where):
    images = {URL: IMAGE, **({f"{URL}.sha256": DIGEST[7:].encode()} if where == "sidecar" else {})}
    harness = Harness(folder, source=FakeSource(images))
    async with harness.running():
        job = await harness.run(msgspec.structs.replace(SPEC, checksum=SPEC.checksum if where == "request" else None))
        if where == "nowhere":
            assert "no checksum is known" in job.error
            assert harness.volume() is None
        else:
            assert job.status is Status.COMPLETED


async def test_url_is_not_parsed_again(folder, monkeypatch):
    """From submit to commit the url is carried as an ImageUrl."""
    async with raw_server(holds(IMAGE)) as server:
        source = HttpSource(HttpSettings(urls=[server.url]), BackEndContext("http", folder))
        harness = Harness(folder, source=source)
        spec = msgspec.structs.replace(SPEC, image_url=ImageUrl.parse(f"{server.url}/disk?signature=x"))
        parsed = []
        monkeypatch.setattr(ImageUrl, "parse", lambda url: url if isinstance(url, ImageUrl) else parsed.append(url))
        async with harness.running():
            active = harness.supervisor._workers.active[await harness.submit(spec)]
            await active.ended.wait()
            assert active.job.status is Status.COMPLETED
        await source.aclose()
        assert parsed == []
        assert {request.target for request in server.requests} == {"/disk?signature=x"}
