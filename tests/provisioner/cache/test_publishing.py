# ruff: noqa: ASYNC240 - small files of a test
"""Publishing: only images whose digest matches, found again by digest or by version."""

import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from provisioner.contracts import MIB
from provisioner.contracts.errors import ChecksumMismatchError, RemoteChangedError, UnsafeImageError
from provisioner.contracts.testing import FakeImage, FakeSource
from tests.provisioner.cache.host import DATA, URL, Host, sha


async def test_publish_read_only(host):
    async with host.running():
        entry, hit = await host.get(checksum=sha(DATA))
        assert not hit
        assert (await host.get(checksum=sha(DATA)))[1]
        assert host.downloads == 1
        path = Path(host.cache.path(entry))
        assert path.read_bytes() == DATA
        assert path.stat().st_mode & 0o777 == 0o444
        assert (entry.format, entry.size, entry.virtual_size, entry.url) == ("raw", len(DATA), len(DATA), URL)
        host.assert_clean([entry.file_name])


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_publish_checksum_mismatch(host, algorithm):
    async with host.running():
        with pytest.raises(ChecksumMismatchError, match=algorithm):
            await host.get(checksum=sha(b"another", algorithm))
        host.assert_clean()


async def test_unverified_image_is_not_listed(host):
    """Bytes can be read while they arrive; the file and the entry appear at the end."""
    host.source.at_byte, host.source.steps.hang_at = len(DATA) - 1, "byte"
    async with host.running():
        async with host.cache.image(host.source, await host.expect(checksum=sha(DATA))) as image:
            await host.source.steps.reached.wait()
            view = image.view("raw", len(DATA))
            await view.arrived(0, 1000)
            assert os.pread(view.fd, 1000, 0) == DATA[:1000]
            assert host.files() == []
            assert host.cache.entries() == []
        host.assert_clean()


async def test_unsafe_header_ends_download(tmp_path):
    bad = (b"LUKS\xba\xbe\0\x01" + bytes(1000)).ljust(32 * MIB, b"x")
    host = Host(tmp_path, {URL: bad})
    async with host.running():
        with pytest.raises(UnsafeImageError):
            async with host.cache.image(host.source, await host.expect(checksum=sha(bad))) as image:
                await image.info()
        assert host.source.bytes_given < len(bad)
        host.assert_clean()


async def test_sha512_only(host):
    """One entry is found by sha512 and also by sha256, which was not given."""
    async with host.running():
        entry, _ = await host.get(checksum=sha(DATA, "sha512"))
        assert entry.sha256 == sha(DATA).hex
        assert (await host.get(checksum=sha(DATA)))[1]
        assert (await host.get(checksum=sha(DATA, "sha512")))[1]
        assert host.downloads == 1


async def test_sha512_is_added_to_entry(host):
    async with host.running():
        await host.get(checksum=sha(DATA))
        entry, hit = await host.get(checksum=sha(DATA, "sha512"))
        assert not hit
        assert entry.sha512 == sha(DATA, "sha512").hex
        assert (await host.get(checksum=sha(DATA, "sha512")))[1]
        host.assert_clean([entry.file_name])


async def test_version_without_checksum(host):
    async with host.running():
        first, _ = await host.get()
        again, hit = await host.get()
        assert hit
        assert again.sha256 == first.sha256
        host.source.images[URL] = FakeImage(DATA + b"new", version="2")
        second, hit = await host.get()
        assert not hit
        assert second.sha256 == sha(DATA + b"new").hex
    async with host.running():
        assert (await host.get())[1]


async def test_neither_checksum_nor_version(tmp_path):
    host = Host(tmp_path, {URL: FakeImage(DATA, version=None)})
    async with host.running():
        entry, _ = await host.get()
        again, hit = await host.get()
        assert not hit
        assert again.sha256 == entry.sha256
        host.assert_clean([entry.file_name])


@pytest.mark.parametrize("size", [None, 1, len(DATA) - 1, len(DATA) + 1])
async def test_size_unknown_or_wrong(tmp_path, size):
    host = Host(tmp_path, {URL: FakeImage(DATA, size=size)})
    async with host.running():
        if size is None:
            entry, _ = await host.get(checksum=sha(DATA))
            assert entry.size == len(DATA)
        else:
            with pytest.raises(RemoteChangedError):
                await host.get(checksum=sha(DATA))
            host.assert_clean()


@pytest.mark.parametrize("honest", [True, False])
async def test_read_ahead_part_differs(tmp_path, monkeypatch, honest):
    """A dishonest server sends one table to the converter and another in the whole image."""
    monkeypatch.setattr("provisioner.download.read_ahead.NEAR", 0)
    halfway, read = trio.Event(), trio.Event()

    class Server(FakeSource):
        async def pass_by(self, url, start, stop):
            if start == len(DATA) // 2:
                halfway.set()
                await read.wait()

        @asynccontextmanager
        async def open(self, url, start=0, stop=None, version=None):
            async with super().open(url, start, stop, version) as stream:
                if stop is not None and not honest:
                    stream._image = self.images[url.text] = FakeImage(bytes(len(DATA)))
                yield stream
                self.images[url.text] = whole

    host = Host(tmp_path)
    whole = FakeImage(DATA)
    host.source = Server({URL: whole}, chunk_size=len(DATA) // 10)
    async with host.running():
        async with host.cache.image(host.source, await host.expect(checksum=sha(DATA))) as image:
            await halfway.wait()
            view = image.view("raw", len(DATA))
            part = await view.ahead(len(DATA) - 512, len(DATA))
            assert (part == DATA[-512:]) is honest
            read.set()
            if honest:
                assert (await image.verified()).sha256 == sha(DATA).hex
            else:
                with pytest.raises(RemoteChangedError, match="different bytes"):
                    await image.verified()
        assert len(host.files()) == honest
