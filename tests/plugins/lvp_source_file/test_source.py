"""The source ``file``: urls, versions, changes while reading, checksums beside the image, and calls that hang."""

import os
import threading

import msgspec
import pytest
import trio

from lvp_source_file import FileSettings
from lvp_source_file.open_file import OpenFile
from lvp_source_file.paths import Place, place_of
from lvp_source_file.source import PIECE, THREADS
from provisioner.config import NamedImage
from provisioner.contracts import ImageUrl
from provisioner.contracts.errors import (
    RemoteChangedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SourceError,
    UrlNotAllowedError,
)
from provisioner.contracts.source import closing_chunks
from provisioner.contracts.testing.source_suite import read
from provisioner.download.checksum_lookup import discover
from provisioner.images import ImageResolver
from tests.plugins.lvp_source_file.conftest import source_of


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///srv/images/a.qcow2", ("/srv/images", b"a.qcow2")),
        ("file://localhost/srv/images/a.qcow2", ("/srv/images", b"a.qcow2")),
        ("FILE:///srv/images/b/c%20d", ("/srv/images", b"b/c d")),
        ("file:///srv/images/%C3%BC%3Fv=1", ("/srv/images", "ü?v=1".encode())),
        ("file:///srv/more/inner/x", ("/srv/more", b"inner/x")),
        ("file:///srv/images", None),
        ("file:///srv/images/", ("/srv/images", b".", True)),
        ("file:///srv/images/b/c%20d/", ("/srv/images", b"b/c d", True)),
        ("file:///srv/", None),
        ("file:///srv/images//", None),
        ("file:///srv/images2/a", None),
        ("file:///srv/images//a", None),
        ("file:///srv/images/a%2Fb", None),
        ("file:///srv/images/a%00", None),
        ("file:///srv/images/a?x", None),
        ("file:///srv/images/a?", None),
        ("http://srv/images/a", None),
    ],
)
def test_place_of(url, expected):
    folders = ["/srv/images", "/srv/more/inner", "/srv/more"]
    place = None if expected is None else Place(*expected)
    assert place_of(ImageUrl.parse(url), folders) == place


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "must name at least one folder"),
        (["/"], "must not contain '/'"),
        (["//"], "must not contain '//'"),
        (["/proc/self/root/srv"], "must not contain '/proc/self/root/srv'"),
        (["/dev"], "must not contain '/dev'"),
        (["/srv/../etc"], "write '/etc' instead"),
    ],
)
def test_settings_folders(folders, message):
    with pytest.raises(ValueError, match=message):
        FileSettings(folders=folders)


def test_settings_folder_with_slash(folder):
    settings = FileSettings(folders=[f"{folder}/"])
    assert msgspec.structs.asdict(settings)["folders"] == [f"{folder}/"]
    assert settings.check_files()["folders[0]"].ok is True
    assert source_of(f"{folder}/").prefixes() == [f"file://{folder}/"]


def test_settings_check_missing_folder(tmp_path):
    finding = FileSettings(folders=[str(tmp_path / "missing")]).check_files()["folders[0]"]
    assert (finding.ok, finding.what) == (False, f"{tmp_path}/missing cannot be opened: No such file or directory")


async def test_foreign_url(source):
    with pytest.raises(UrlNotAllowedError, match="source local does not serve"):
        await source.stat(ImageUrl.parse("file:///etc/hostname"))


def replaced(path):
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    new.rename(path)


def written_in_place(path):
    with path.open("r+b") as file:
        file.write(b"x")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # clocks of file systems are coarse


def dated_back(path):
    """The old date restored, as ``rsync -t`` and ``cp -p`` do: only the inode's own clock tells."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [replaced, written_in_place, dated_back])
async def test_version_changes(folder, source, change):
    path = folder / "image"
    path.write_bytes(b"a" * 100)
    url = ImageUrl.parse(f"file://{path}")
    before = (await source.stat(url)).version
    assert (await source.stat(url)).version == before
    change(path)
    assert (await source.stat(url)).version != before
    with pytest.raises(RemoteChangedError):
        async with source.open(url, version=before):
            pass


async def rest(chunks):
    return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("change", [replaced, written_in_place, lambda path: os.truncate(path, 10)])
async def test_change_while_reading(folder, source, change):
    path = folder / "image"
    path.write_bytes(b"a" * (PIECE + 1))
    url = ImageUrl.parse(f"file://{path}")
    version = (await source.stat(url)).version
    async with source.open(url, version=version) as stream, closing_chunks(stream) as chunks:
        await anext(chunks)
        change(path)
        with pytest.raises(RemoteChangedError, match="changed while it was being read"):
            await rest(chunks)


async def test_write_while_reading_without_version(folder, source):
    """An image with a checksum is read without a version: a rename beside it does not matter, a write does."""
    path = folder / "image"
    path.write_bytes(b"a" * (PIECE + 1))
    url = ImageUrl.parse(f"file://{path}")
    async with source.open(url) as stream, closing_chunks(stream) as chunks:
        await anext(chunks)
        replaced(path)
        assert await rest(chunks) == b"a"
    async with source.open(url) as stream, closing_chunks(stream) as chunks:
        await anext(chunks)
        written_in_place(path)
        with pytest.raises(RemoteChangedError):
            await rest(chunks)


@pytest.mark.parametrize("name", ["image.qcow2.sha256", "SHA256SUMS", "CHECKSUM"])
async def test_checksum_beside_the_image(folder, source, name):
    (folder / "image.qcow2").write_bytes(b"image")
    (folder / name).write_text(f"{'ab' * 32}  image.qcow2\n")
    found = await discover(source, ImageUrl.parse(f"file://{folder}/image.qcow2"))
    assert (str(found.checksum), found.origin) == (f"sha256:{'ab' * 32}", f"file://{folder}/{name}")


async def test_checksum_of_the_folder_above_is_not_read(folder, source):
    """Patterns with {parent} do not lead out of the configured folder."""
    (folder.parent / "SUMS").write_text(f"{'ab' * 32}  image\n")
    (folder / "image").write_bytes(b"image")
    one = source_of(folder, checksum_files=["{parent}/SUMS"])
    assert (await discover(one, ImageUrl.parse(f"file://{folder}/image"))).checksum is None


async def test_newest_of_a_folder(folder, source):
    """A named image's url pattern finds the newest file, also in folders with versions."""
    for version in ("9", "10", "11-rc1"):
        (folder / f"v{version}").mkdir()
        (folder / f"v{version}" / f"debian-{version}.qcow2").write_bytes(b"image")
    image = NamedImage(url=f"file://{folder}/v{{version}}/debian-{{version}}.qcow2")
    resolver = ImageResolver({"debian": image}, lambda _url: source, list)
    assert (await resolver.resolve("debian")).url.text == f"file://{folder}/v10/debian-10.qcow2"


async def test_listing(folder, source):
    (folder / "an image").write_bytes(b"image")
    (folder / "out").symlink_to("..")
    assert sorted((await fetch(source, ImageUrl.parse(f"file://{folder}/"))).splitlines()) == [
        b'<a href="an%20image"></a>',
        b'<a href="out"></a>',
    ]
    missing = RemoteNotFoundError
    for path, kind in (("out/", UrlNotAllowedError), ("none/", missing), ("an%20image/", missing)):
        with pytest.raises(kind):
            await fetch(source, ImageUrl.parse(f"file://{folder}/{path}"))
    with pytest.raises(SourceError, match="it is a folder, not a file"):
        await source.stat(ImageUrl.parse(f"file://{folder}/"))


class HungFile(OpenFile):
    """A file whose reads hang until ``server`` is set, as on a file system whose server is gone."""

    server: threading.Event
    reading: threading.Semaphore
    closed: threading.Semaphore

    def read(self, offset, size):
        with self._used():
            self.reading.release()
            assert self.server.wait(60), "nothing brought the server back"
        return super().read(offset, size)

    def _release(self):
        super()._release()
        self.closed.release()


@pytest.fixture
def hanging(monkeypatch, folder):
    HungFile.server, HungFile.reading, HungFile.closed = threading.Event(), *(threading.Semaphore(0) for _ in "ab")
    monkeypatch.setattr("lvp_source_file.source.OpenFile", HungFile)
    (folder / "image").write_bytes(b"image")
    yield ImageUrl.parse(f"file://{folder}/image")
    HungFile.server.set()


async def acquire(semaphore, count=1):
    for _ in range(count):
        assert await trio.to_thread.run_sync(semaphore.acquire, True, 60)


async def fetch(source, url):
    async with source.open(url) as stream:
        return await read(stream)


async def test_cancel_while_the_file_system_hangs(hanging, source):
    """The cancel is not held up, and the descriptor is closed when the thread comes back, not before."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, source, hanging)
        await acquire(HungFile.reading)
        nursery.cancel_scope.cancel()
    assert not HungFile.closed.acquire(blocking=False)
    HungFile.server.set()
    await acquire(HungFile.closed)


async def test_time_limit_while_the_file_system_hangs(hanging, folder):
    with pytest.raises(RemoteUnavailableError, match=r"did not answer in 0\.01 s"):
        await fetch(source_of(folder, stall_timeout=0.01), hanging)


async def test_other_folder_while_one_hangs(hanging, folder, tmp_path, monkeypatch):
    """Readers that hang in one folder take no thread from another."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "image").write_bytes(b"other")
    source = source_of(folder, other)
    async with trio.open_nursery() as nursery:
        for _ in range(THREADS):
            nursery.start_soon(fetch, source, hanging)
        await acquire(HungFile.reading, THREADS)
        nursery.start_soon(fetch, source, hanging)  # waits for a thread
        monkeypatch.setattr("lvp_source_file.source.OpenFile", OpenFile)
        assert await fetch(source, ImageUrl.parse(f"file://{other}/image")) == b"other"
        nursery.cancel_scope.cancel()
