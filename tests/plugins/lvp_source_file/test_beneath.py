"""Only regular files beneath the folder are opened, whatever links and other things lie there."""

import os
import socket
import threading

import pytest

from lvp_source_file.beneath import NotRegularError, open_regular
from provisioner.contracts import ImageUrl
from provisioner.contracts.errors import RemoteNotFoundError, SourceError, UrlNotAllowedError
from provisioner.contracts.testing.source_suite import read
from tests.plugins.lvp_source_file.conftest import source_of


async def content_of(source, path):
    async with source.open(ImageUrl.parse(f"file://{path}")) as stream:
        return await read(stream)


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("not an image")
    return path


async def test_relative_links_inside(folder, source):
    (folder / "releases").mkdir()
    (folder / "releases" / "12.qcow2").write_bytes(b"image")
    (folder / "latest").symlink_to("releases")
    (folder / "releases" / "debian.qcow2").symlink_to("../latest/12.qcow2")
    assert await content_of(source, folder / "latest" / "debian.qcow2") == b"image"


@pytest.mark.parametrize("target", ["../secret", "{folder}/../secret", "{secret}", "{folder}/image", "/etc/hostname"])
async def test_link_that_is_absolute_or_leads_out(folder, source, secret, target):
    (folder / "image").write_bytes(b"image")
    (folder / "link").symlink_to(target.format(folder=folder, secret=secret))
    with pytest.raises(UrlNotAllowedError, match="a symbolic link leads out of"):
        await content_of(source, folder / "link")


async def test_folder_of_the_path_is_a_link_out(folder, source, secret):
    (folder / "sub").symlink_to("..")
    with pytest.raises(UrlNotAllowedError, match="a symbolic link leads out of"):
        await content_of(source, folder / "sub" / "secret")


async def test_links_in_a_circle(folder, source):
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    with pytest.raises(SourceError, match="leads nowhere"):
        await content_of(source, folder / "one")


async def test_dangling_link(folder, source):
    (folder / "link").symlink_to("missing")
    with pytest.raises(RemoteNotFoundError, match="no such file"):
        await content_of(source, folder / "link")


async def test_folder_itself_may_be_a_link(tmp_path, folder):
    (folder / "image").write_bytes(b"image")
    (tmp_path / "mounted").symlink_to(folder)
    assert await content_of(source_of(tmp_path / "mounted"), tmp_path / "mounted" / "image") == b"image"


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))  # the path of a socket is short


@pytest.mark.parametrize(("make", "kind"), [(make_pipe, "a pipe"), (make_socket, "a socket"), (os.mkdir, "a folder")])
async def test_not_a_regular_file(folder, source, make, kind):
    make(folder / "thing")
    with pytest.raises(SourceError, match=f"it is {kind}, not a file"):
        await content_of(source, folder / "thing")


def test_device():
    with pytest.raises(NotRegularError, match="it is a device"):
        open_regular("/dev", b"null")


@pytest.mark.parametrize("path", [b"self/status", b"self/root/etc/hostname", b"self/cwd/pyproject.toml", b"self/fd/0"])
def test_nothing_through_proc(path):
    with pytest.raises(OSError):
        open_regular("/proc", path)


def test_no_escape_in_a_race(tmp_path, folder, secret):
    """A folder that is a link to the outside half of the time never leads there."""
    (folder / "real").mkdir()
    (folder / "real" / "secret").write_text("an image")
    (folder / "link").symlink_to("..")
    ended = threading.Event()

    def exchange():
        while not ended.is_set():
            (folder / "place").unlink(missing_ok=True)
            (folder / "place").symlink_to("real")
            (folder / "new").symlink_to("..")
            (folder / "new").rename(folder / "place")

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for _ in range(2000):
            try:
                fd, _ = open_regular(str(folder), b"place/secret")
            except OSError:
                continue
            assert os.read(fd, 100) == b"an image"
            os.close(fd)
    finally:
        ended.set()
        thread.join()
