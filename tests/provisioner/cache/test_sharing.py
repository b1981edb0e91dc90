"""One download for all who want the image, whoever leaves."""

import threading

import pytest
import trio

from provisioner.cache.partials import Partials
from provisioner.contracts.errors import ChecksumMismatchError, RemoteUnavailableError
from tests.provisioner.cache.host import DATA, SITE, URL, Host, sha


async def wait_for_users(cache, count):
    while sum(download.users for download in cache._downloads._by_key.values()) != count:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("leaving", [(), (0,), (1,), (0, 1)], ids=["nobody", "first", "second", "both"])
async def test_two_jobs_share_a_download(host, leaving):
    """It goes on as long as one of them is there; when both have left, it ends and its file is gone."""
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


async def test_two_jobs_share_a_download_to_its_end(host):
    async with host.running():
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(host.get, URL, sha(DATA))
        assert host.downloads == 1
        assert host.source.bytes_given == len(DATA)


async def test_the_first_leaves_and_the_second_has_it(tmp_path):
    """The download is nobody's own: it survives the job that began it."""
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


async def test_boarding_while_the_last_one_leaves(host):
    """The newcomer gets a download of its own rather than the one that is being given up."""
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


async def test_a_checksum_does_not_tie_one_job_to_another_s_server(tmp_path):
    """Same digest, other url: the one that hangs or lies is not everybody's."""
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


async def test_many_downloads_at_once_do_not_starve_each_other(tmp_path):
    """More of them than trio has threads: those that hash must not keep out those that write."""
    images = {f"{SITE}/{number}.raw": DATA[number:] for number in range(60)}
    host, give = Host(tmp_path, images), None

    async def when_all_are_under_way(url, start, stop):
        while len(host.cache._downloads._by_key) < 60 and not host.cache.entries():
            await trio.lowlevel.checkpoint()
        await give(url, start, stop)

    give, host.source.pass_by = host.source.pass_by, when_all_are_under_way
    async with host.running():
        async with trio.open_nursery() as nursery:
            for url in images:
                nursery.start_soon(host.get, url)
        assert len(host.cache.entries()) == 60


async def test_a_failed_download_fails_all_its_jobs_and_is_tried_again_by_the_next(host):
    host.source.at_byte, host.source.steps.fail_at = 100_000, {"byte": RemoteUnavailableError("gone")}
    failed = []

    async def job():
        with pytest.raises(RemoteUnavailableError):
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


async def test_files_are_opened_in_threads(host, monkeypatch):
    """A folder that hangs must not stop the loop; several jobs of one image still share one download."""
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
