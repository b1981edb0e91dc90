"""Downloads shared by several jobs, some of which leave early."""

import threading
from dataclasses import replace

import pytest
import trio

from provisioner.cache.partials import Partials
from provisioner.contracts.errors import (
    ChecksumMismatchError,
    ProvisionerError,
    RemoteNotFoundError,
    RemoteUnavailableError,
)
from tests.provisioner.cache.host import DATA, SITE, URL, Host, sha


async def wait_for_users(cache, count):
    while sum(download.users for download in cache._downloads._by_key.values()) != count:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("leaving", [(), (0,), (1,), (0, 1)], ids=["nobody", "first", "second", "both"])
async def test_two_jobs_share_a_download(host, leaving):
    """The download continues while one job uses it; when both have left, it ends and its file is removed."""
    host.source.at_byte, host.source.steps.hang_at = len(DATA) // 2, "byte"
    scopes, got = [trio.CancelScope(), trio.CancelScope()], []

    async def job(number):
        with scopes[number]:
            got.append((number, (await host.get(checksum=sha(DATA)))[0].sha256))

    async with host.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job, 0)
            await host.source.steps.reached.wait()
            nursery.start_soon(job, 1)
            await wait_for_users(host.cache, 2)
            for number in leaving:
                scopes[number].cancel()
            await wait_for_users(host.cache, 2 - len(leaving))
            while len(leaving) == 2 and host.source.open_now:
                await trio.lowlevel.checkpoint()
            assert host.source.open_now == (1 if len(leaving) < 2 else 0)
            nursery.cancel_scope.cancel()
        assert host.downloads == 1
        host.assert_clean()


async def test_ten_jobs_share_a_download(host):
    async with host.running():
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(host.get, URL, sha(DATA))
        assert host.downloads == 1
        assert host.source.bytes_given == len(DATA)


async def test_first_job_leaves(tmp_path):
    """The download survives the job that started it."""
    host, gate = Host(tmp_path), trio.Event()
    give = host.source.pass_by

    async def pass_by(url, start, stop):
        if start > len(DATA) // 2:
            await gate.wait()
        await give(url, start, stop)

    host.source.pass_by = pass_by
    scope, got = trio.CancelScope(), []

    async def first():
        with scope:
            await host.get(checksum=sha(DATA))

    async def second():
        got.append(await host.get(checksum=sha(DATA)))

    async with host.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await wait_for_users(host.cache, 1)
            nursery.start_soon(second)
            await wait_for_users(host.cache, 2)
            scope.cancel()
            await wait_for_users(host.cache, 1)
            gate.set()
        assert got[0][0].sha256 == sha(DATA).hex
        assert host.downloads == 1
        host.assert_clean([got[0][0].file_name])


async def test_join_while_last_user_leaves(host):
    """The newcomer gets a new download instead of the one that is being cancelled."""
    host.source.at_byte, host.source.steps.hang_at = len(DATA) // 2, "byte"
    scope, got = trio.CancelScope(), []

    async def leaver():
        with scope:
            await host.get(checksum=sha(DATA))

    async def newcomer():
        got.append(await host.get(checksum=sha(DATA)))

    async with host.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaver)
            await host.source.steps.reached.wait()
            host.source.steps.hang_at = None
            scope.cancel()
            nursery.start_soon(newcomer)
        assert not got[0][1]
        host.assert_clean([got[0][0].file_name])


async def test_same_checksum_other_url(tmp_path):
    """The downloads are separate, so a server that hangs or lies affects only its own jobs."""
    other = f"{SITE}/mirror/disk.raw"
    host = Host(tmp_path, {URL: b"a lie", other: DATA})
    async with host.running():
        results = []

        async def job(url):
            try:
                results.append((await host.get(url, sha(DATA)))[0].sha256)
            except ChecksumMismatchError:
                results.append("mismatch")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(job, URL)
            nursery.start_soon(job, other)
        assert sorted(results) == sorted(["mismatch", sha(DATA).hex])


async def test_sixty_downloads_at_once(tmp_path):
    """More downloads than trio's default thread limit: hashing threads must not starve the writing ones."""
    images = {f"{SITE}/{number}.raw": DATA[number:] for number in range(60)}
    host, give = Host(tmp_path, images), None

    async def when_all_are_under_way(url, start, stop):
        # Asleep, not spinning: sixty tasks that never let go of the GIL starve the threads they wait for.
        while len(host.cache._downloads._by_key) < 60 and not host.cache.entries():  # noqa: ASYNC110
            await trio.sleep(0.01)
        await give(url, start, stop)

    give, host.source.pass_by = host.source.pass_by, when_all_are_under_way
    async with host.running():
        async with trio.open_nursery() as nursery:
            for url in images:
                nursery.start_soon(host.get, url)
        assert len(host.cache.entries()) == 60


async def test_failed_download_fails_all_its_jobs(host):
    host.source.at_byte, host.source.steps.fail_at = 100_000, {"byte": RemoteNotFoundError("gone")}
    failed = []

    async def job():
        with pytest.raises(RemoteNotFoundError):
            await host.get(checksum=sha(DATA))
        failed.append(1)

    async with host.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job)
            nursery.start_soon(job)
        assert len(failed) == 2
        assert host.downloads == 1
        host.assert_clean()
        host.source.steps.fail_at = {}
        assert not (await host.get(checksum=sha(DATA)))[1]


async def test_broken_off_download_is_resumed(host):
    """What arrived before the server failed is kept for the next job, even if a mirror answers it."""
    host.source.at_byte, host.source.steps.fail_at = 100_000, {"byte": RemoteUnavailableError("gone")}
    async with host.running():
        with pytest.raises(RemoteUnavailableError):
            await host.get(checksum=sha(DATA))
        assert len(host.partials()) == 1
        host.source.steps.fail_at = {}
        host.source.images[URL] = replace(host.source.images[URL], version='"of another mirror"')
        assert not (await host.get(checksum=sha(DATA)))[1]
        assert host.source.opens[-1][1] > 0
        assert host.partials() == []


@pytest.mark.parametrize("checksum", [None, sha(b"another")])
async def test_useless_download_is_not_kept(host, checksum):
    """Without a digest, the next job could not tell whether the parts fit; a wrong digest means wrong bytes."""
    if checksum is None:
        host.source.at_byte, host.source.steps.fail_at = 100_000, {"byte": RemoteUnavailableError("gone")}
    async with host.running():
        with pytest.raises(ProvisionerError):
            await host.get(checksum=checksum)
        assert host.partials() == []


async def test_files_are_opened_in_threads(host, monkeypatch):
    """A folder that hangs does not block the loop; jobs for one image still share one download."""
    loop, opened = threading.get_ident(), []
    real = Partials.open

    def recording(self, *arguments):
        opened.append(threading.get_ident())
        return real(self, *arguments)

    monkeypatch.setattr(Partials, "open", recording)
    async with host.running():
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(host.get, URL, sha(DATA))
        assert len(opened) == 1
        assert loop not in opened
        assert host.downloads == 1
