"""Tests of the S3 source with another server (Versity), which also supports virtual-hosted buckets."""

import socket
from urllib.parse import quote

import pytest

from lvp_source_s3 import S3Settings
from provisioner.contracts import ImageUrl
from provisioner.contracts.errors import RemoteChangedError, RemoteDeniedError, RemoteNotFoundError, UrlNotAllowedError
from tests.minio.saving import save

pytestmark = pytest.mark.minio

CONTENT = bytes(range(251)) * 9000


@pytest.fixture(scope="module")
def images(gateway):
    gateway.client().make_bucket("images")
    gateway.put("images", "disk image+ü.qcow2", CONTENT)
    return gateway


@pytest.fixture
def names_lead_here(monkeypatch):
    """Resolve the names of the virtual hosts, which are not in the DNS, to this host."""
    ask = socket.getaddrinfo

    def answer(host, *args, **kwargs):
        return ask("127.0.0.1" if str(host).endswith("s3.example.com") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", answer)


async def test_path_style(images, source_of, tmp_path):
    source, url = source_of(S3Settings, images), f"{images.url}/images/{quote('disk image+ü.qcow2')}"
    image = await source.stat(ImageUrl.parse(url))
    assert image.size == len(CONTENT)
    assert await save(source, url, tmp_path / "out", version=image.version) == (CONTENT, 0)
    assert await save(source, url, tmp_path / "out", start=77, version=image.version) == (CONTENT[77:], 77)
    await source.aclose()


async def test_virtual_hosted_bucket(images, source_of, names_lead_here, tmp_path):
    port = images.host.rpartition(":")[2]
    endpoint, here = f"https://s3.example.com:{port}", ["127.0.0.0/8"]
    source = source_of(S3Settings, images, endpoint=endpoint, addressing="virtual", allow_addresses=here)
    for url in (
        f"https://images.s3.example.com:{port}/disk%20image+%C3%BC.qcow2",
        f"https://s3.example.com:{port}/images/disk%20image+%C3%BC.qcow2",
        "s3://images/disk%20image%2B%C3%BC.qcow2",
    ):
        assert source.owns(ImageUrl.parse(url))
        assert await save(source, url, tmp_path / "out", start=5) == (CONTENT[5:], 5)
    assert not source.owns(ImageUrl.parse(f"https://images.s3.example.com.evil.example:{port}/disk"))
    await source.aclose()
    unaware = source_of(S3Settings, images, endpoint=endpoint, addressing="virtual")
    with pytest.raises(UrlNotAllowedError, match=r"\(this host\)"):
        await unaware.stat(ImageUrl.parse("s3://images/disk"))
    await unaware.aclose()


async def test_missing_object_and_wrong_key(images, source_of):
    right, wrong = source_of(S3Settings, images), source_of(S3Settings, images, secret_key="not-the-right-one")
    for path, kind in (("images/none", RemoteNotFoundError), ("no-such-bucket/none", RemoteNotFoundError)):
        with pytest.raises(kind):
            await right.stat(ImageUrl.parse(f"{images.url}/{path}"))
    with pytest.raises(RemoteDeniedError, match="secret key of source lab is wrong"):
        await wrong.stat(ImageUrl.parse(f"{images.url}/images/disk"))
    await right.aclose()
    await wrong.aclose()


async def test_replaced_object(images, source_of):
    images.put("images", "replaced", b"one")
    source, url = source_of(S3Settings, images), f"{images.url}/images/replaced"
    image = await source.stat(ImageUrl.parse(url))
    images.put("images", "replaced", b"two")
    for start in (0, 1):
        with pytest.raises(RemoteChangedError):
            async with source.open(ImageUrl.parse(url), start=start, version=image.version):
                pass
    await source.aclose()


async def test_wrong_region(images, source_of):
    source = source_of(S3Settings, images, region="eu-central-1")
    with pytest.raises(Exception, match="region") as caught:
        await source.stat(ImageUrl.parse(f"{images.url}/images/none"))
    assert not caught.value.temporary
    await source.aclose()
