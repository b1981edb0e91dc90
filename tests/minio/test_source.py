"""Tests of the S3 source with a real MinIO, with TLS and a private CA."""

import base64
import hashlib
import json
import logging
import ssl
from io import BytesIO
from urllib.parse import quote

import pytest
import trio
from minio.versioningconfig import ENABLED, VersioningConfig

from lvp_source_s3 import MinioSettings, S3Source
from provisioner.contracts import BackEndContext, Checksum, ImageUrl
from provisioner.contracts.errors import RemoteChangedError, RemoteDeniedError, RemoteNotFoundError, UrlNotAllowedError
from provisioner.download.checksum_lookup import discover
from provisioner.download.retries import with_retries
from tests.minio.saving import save
from tests.servers.raw import raw_server

pytestmark = pytest.mark.minio

CONTENT = bytes(range(251)) * 9000


@pytest.fixture(scope="module")
def images(store):
    store.client().make_bucket("images")
    store.put("images", "disk.qcow2", CONTENT)
    return store


async def test_private_bucket_whole_and_ranges(images, source_of, tmp_path):
    source, url = source_of(MinioSettings, images), f"{images.url}/images/disk.qcow2"
    image = await source.stat(ImageUrl.parse(url))
    assert (image.url.text, image.size, image.accepts_ranges) == (url, len(CONTENT), True)
    assert image.version.startswith('"')
    assert await save(source, url, tmp_path / "out", version=image.version) == (CONTENT, 0)
    assert await save(source, url, tmp_path / "out", start=7, stop=999, version=image.version) == (CONTENT[7:999], 7)
    assert await save(source, url, tmp_path / "out", start=1_000_000) == (CONTENT[1_000_000:], 1_000_000)
    await source.aclose()


async def test_bare_url_needs_listed_bucket(images, source_of):
    listed, unlisted = source_of(MinioSettings, images, buckets=["images/"]), source_of(MinioSettings, images)
    assert (await listed.stat(ImageUrl.parse("s3://images/disk.qcow2"))).size == len(CONTENT)
    assert not listed.owns(ImageUrl.parse("s3://other/disk.qcow2"))
    assert not listed.owns(ImageUrl.parse(f"{images.url}/other/disk.qcow2"))
    with pytest.raises(UrlNotAllowedError):
        await unlisted.stat(ImageUrl.parse("s3://images/disk.qcow2"))
    await listed.aclose()


@pytest.mark.parametrize(
    "key",
    [
        "with space.qcow2",
        "üñí/çødé-日本.qcow2",
        "a+b.qcow2",
        "100%.qcow2",
        "a%20b.qcow2",
        "a%2Bb+c d.qcow2",
        "x=1&y=2;z,(~)!*'$@:.qcow2",
        "deep/er/and/deeper.qcow2",
        "-leading.qcow2",
    ],
)
async def test_odd_object_keys(images, source_of, key):
    content = key.encode()
    images.put("images", key, content)
    source = source_of(MinioSettings, images)
    for url in (f"{images.url}/images/{quote(key)}", f"{images.url}/images/{quote(key, safe='/+=&;,~!*$@:')}"):
        assert (await source.stat(ImageUrl.parse(url))).size == len(content)
        async with source.open(ImageUrl.parse(url)) as stream:
            assert b"".join([chunk async for chunk in stream]) == content
    await source.aclose()


@pytest.mark.parametrize(
    ("path", "keys", "kind", "words"),
    [
        ("images/none.qcow2", {}, RemoteNotFoundError, "no such object in the bucket (NoSuchKey"),
        ("no-such-bucket/disk.qcow2", {}, RemoteNotFoundError, "no such bucket (NoSuchBucket"),
        (
            "images/disk.qcow2",
            {"access_key": "unknown-access-key"},
            RemoteDeniedError,
            "does not know the access key of source lab",
        ),
        (
            "images/disk.qcow2",
            {"secret_key": "not-the-right-one"},
            RemoteDeniedError,
            "the secret key of source lab is wrong",
        ),
    ],
)
async def test_refusal_names_cause_without_key(images, source_of, caplog, path, keys, kind, words):
    caplog.set_level(logging.DEBUG)
    source = source_of(MinioSettings, images, **keys)
    for attempt in (source.stat(ImageUrl.parse(f"{images.url}/{path}")), _open(source, f"{images.url}/{path}")):
        with pytest.raises(kind) as caught:
            await attempt
        assert words in caught.value.message
        assert not caught.value.temporary
        shown = f"{caught.value!r} {caught.value.__cause__!r} {source!r} {caplog.text}"
        for secret in (images.secret_key, images.access_key, *keys.values()):
            assert secret not in shown
    await source.aclose()


async def test_key_without_permission(images, source_of):
    images.admin().user_add("poor-user", "poor-users-secret")
    source = source_of(MinioSettings, images, "poor-user", "poor-users-secret")
    with pytest.raises(RemoteDeniedError, match="may not read it"):
        await source.stat(ImageUrl.parse(f"{images.url}/images/disk.qcow2"))
    await source.aclose()


async def test_key_for_one_bucket(images, source_of, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(_may_read("arn:aws:s3:::images/*")))
    admin = images.admin()
    admin.user_add("reader", "the-readers-secret")
    admin.policy_add("read-images", str(policy))
    admin.policy_set("read-images", user="reader")
    images.client().make_bucket("closed")
    images.put("closed", "disk.qcow2", CONTENT)
    source = source_of(MinioSettings, images, "reader", "the-readers-secret")
    assert (await source.stat(ImageUrl.parse(f"{images.url}/images/disk.qcow2"))).size == len(CONTENT)
    with pytest.raises(RemoteDeniedError):
        await source.stat(ImageUrl.parse(f"{images.url}/closed/disk.qcow2"))
    # Without the permission to list, MinIO may answer 'denied' for missing objects too.
    with pytest.raises((RemoteDeniedError, RemoteNotFoundError)):
        await source.stat(ImageUrl.parse(f"{images.url}/images/none.qcow2"))
    await source.aclose()


async def test_public_bucket_without_keys(images, tmp_path):
    client = images.client()
    client.make_bucket("public")
    client.set_bucket_policy("public", json.dumps({**_may_read("arn:aws:s3:::public/*", Principal={"AWS": ["*"]})}))
    images.put("public", "disk.qcow2", CONTENT)
    settings = MinioSettings(endpoint=images.url, ca_file=str(images.ca_file), credentials="anonymous")
    source = S3Source(settings, BackEndContext("lab", tmp_path))
    assert (await source.stat(ImageUrl.parse(f"{images.url}/public/disk.qcow2"))).size == len(CONTENT)
    with pytest.raises(RemoteDeniedError, match="a caller without credentials may not read it"):
        await source.stat(ImageUrl.parse(f"{images.url}/images/disk.qcow2"))
    await source.aclose()


async def test_presigned_url(images, tmp_path):
    settings = MinioSettings(endpoint=images.url, ca_file=str(images.ca_file), credentials="anonymous")
    source = S3Source(settings, BackEndContext("lab", tmp_path))
    url = images.client().presigned_get_object("images", "disk.qcow2")
    image = await source.stat(ImageUrl.parse(url))  # signed for GET, so the server rejects HEAD
    assert image.size == len(CONTENT)
    assert await save(source, url, tmp_path / "out", start=5, version=image.version) == (CONTENT[5:], 5)
    await source.aclose()


async def test_multipart_object(images, source_of, tmp_path):
    content = CONTENT * 6
    images.client().put_object("images", "parts.qcow2", BytesIO(content), len(content), part_size=5 * 1024**2)
    source, url = source_of(MinioSettings, images), f"{images.url}/images/parts.qcow2"
    image = await source.stat(ImageUrl.parse(url))
    assert image.size == len(content)
    assert image.version.endswith('-3"')
    assert await save(source, url, tmp_path / "out", version=image.version) == (content, 0)
    assert (await save(source, url, tmp_path / "out", start=6_000_000, version=image.version))[0] == content[6_000_000:]
    await source.aclose()


async def test_object_checksum(images, source_of):
    """What the store computed when it received the whole object is its digest; one of parts' digests is not."""
    source, client = source_of(MinioSettings, images), images.client()
    whole = {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()}
    headers = {"x-amz-checksum-algorithm": "SHA256", **whole}
    client._put_object("images", "summed", CONTENT, headers)
    upload = client._create_multipart_upload("images", "summed-parts", {"x-amz-checksum-algorithm": "SHA256"})
    part = client._upload_part("images", "summed-parts", CONTENT, headers, upload, 1)
    client._execute(
        "POST",
        "images",
        "summed-parts",
        body=(
            f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{part}</ETag><ChecksumSHA256>"
            f"{whole['x-amz-checksum-sha256']}</ChecksumSHA256></Part></CompleteMultipartUpload>"
        ).encode(),
        query_params={"uploadId": upload},
    )
    for name, digest in (("summed", hashlib.sha256(CONTENT).hexdigest()), ("summed-parts", None), ("disk.qcow2", None)):
        image = await source.stat(ImageUrl.parse(f"{images.url}/images/{name}"))
        assert (image.digest.hex if image.digest else None) == digest, name
    found = await discover(
        source,
        ImageUrl.parse(f"{images.url}/images/summed"),
        await source.stat(ImageUrl.parse(f"{images.url}/images/summed")),
    )
    assert found.checksum == Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
    await source.aclose()


async def test_object_checksum_of_public_bucket(images, tmp_path):
    """A caller without keys gets it too; a presigned url cannot ask for it."""
    images.client().make_bucket("open")
    images.client().set_bucket_policy("open", json.dumps(_may_read("arn:aws:s3:::open/*", Principal={"AWS": ["*"]})))
    headers = {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()}
    images.client()._put_object("open", "summed", CONTENT, headers)
    settings = MinioSettings(endpoint=images.url, ca_file=str(images.ca_file), credentials="anonymous")
    source = S3Source(settings, BackEndContext("lab", tmp_path))
    image = await source.stat(ImageUrl.parse(f"{images.url}/open/summed"))
    assert image.digest == Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
    presigned = images.client().presigned_get_object("open", "summed")
    assert (await source.stat(ImageUrl.parse(presigned))).size == len(CONTENT)
    await source.aclose()


async def test_checksum_file_beside_the_object(images, source_of):
    source = source_of(MinioSettings, images)
    images.put("images", "v2/disk.raw", CONTENT)
    images.put("images", "v2/CHECKSUM", f"SHA256 (disk.raw) = {hashlib.sha256(CONTENT).hexdigest()}\n".encode())
    found = await discover(source, ImageUrl.parse(f"{images.url}/images/v2/disk.raw"))
    assert found.checksum == Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
    assert found.origin == f"{images.url}/images/v2/CHECKSUM"
    await source.aclose()


async def test_empty_object(images, source_of, tmp_path):
    images.put("images", "empty", b"")
    source = source_of(MinioSettings, images)
    assert (await source.stat(ImageUrl.parse(f"{images.url}/images/empty"))).size == 0
    assert await save(source, f"{images.url}/images/empty", tmp_path / "out") == (b"", 0)
    await source.aclose()


async def test_content_encoding_is_ignored(images, source_of, tmp_path):
    images.put("images", "labelled", b"not gzip at all", **{"Content-Encoding": "gzip"})
    source = source_of(MinioSettings, images)
    assert (await save(source, f"{images.url}/images/labelled", tmp_path / "out"))[0] == b"not gzip at all"
    await source.aclose()


async def test_object_replaced_during_download(images, source_of, tmp_path):
    client = images.client()
    client.make_bucket("versioned")
    client.set_bucket_versioning("versioned", VersioningConfig(ENABLED))
    old, new = CONTENT * 4, CONTENT[::-1] * 4
    first = images.client().put_object("versioned", "disk", BytesIO(old), len(old))
    source, url = source_of(MinioSettings, images), f"{images.url}/versioned/disk"
    image = await source.stat(ImageUrl.parse(url))
    with (tmp_path / "out").open("w+b") as file:
        async with source.open(ImageUrl.parse(url), version=image.version) as stream, trio.open_nursery() as nursery:
            # MinIO makes the writer wait for readers, so both must run at the same time.
            nursery.start_soon(trio.to_thread.run_sync, images.put, "versioned", "disk", new)
            end = await stream.save(file.fileno(), lambda _end: None)
    # The running download gets the old version completely.
    assert end == len(old)
    assert (tmp_path / "out").read_bytes() == old
    for start in (0, 1000):
        with pytest.raises(RemoteChangedError) as caught:
            await _open(source, url, start=start, version=image.version)
        assert caught.value.temporary
    # A url with a version id still gets that version.
    pinned = f"{url}?versionId={first.version_id}"
    assert await save(source, pinned, tmp_path / "out", start=1000, version=image.version) == (old[1000:], 1000)
    with pytest.raises(RemoteNotFoundError):
        await source.stat(ImageUrl.parse(f"{url}?versionId=00000000-0000-0000-0000-000000000000"))
    await source.aclose()


@pytest.mark.parametrize("place", ["{url}/kept", "s3://kept"])
async def test_versions_of_an_object(images, source_of, tmp_path, place):
    """Each version has its own size, validator and digest; the newest one may be a delete marker."""
    client = images.client()
    if not client.bucket_exists("kept"):
        client.make_bucket("kept")
        client.set_bucket_versioning("kept", VersioningConfig(ENABLED))
    source = source_of(MinioSettings, images, buckets=["kept"])
    contents = [CONTENT, CONTENT[::-1] + b"longer"]
    ids = [client.put_object("kept", "disk", BytesIO(one), len(one)).version_id for one in contents]
    base = place.format(url=images.url) + "/disk"
    seen = []
    for version_id, content in zip(ids, contents, strict=True):
        url = f"{base}?versionId={version_id}"
        image = await source.stat(ImageUrl.parse(url))
        assert (image.url.text, str(image.url), image.size) == (url, url, len(content))
        assert await save(source, url, tmp_path / "out", version=image.version) == (content, 0)
        with pytest.raises(RemoteChangedError):
            await _open(source, url, version='"another"')
        seen.append(image.version)
    assert len(set(seen)) == 2
    assert (await source.stat(ImageUrl.parse(base))).version == seen[1]
    client.remove_object("kept", "disk")
    with pytest.raises(RemoteNotFoundError):
        await source.stat(ImageUrl.parse(base))
    assert (await source.stat(ImageUrl.parse(f"{base}?versionId={ids[0]}"))).version == seen[0]
    with pytest.raises(RemoteNotFoundError) as caught:
        await source.stat(ImageUrl.parse(f"{base}?versionId=00000000-0000-0000-0000-000000000000"))
    assert "disk?versionId=00000000-0000-0000-0000-000000000000: no such version" in caught.value.message
    await source.aclose()


async def test_checksum_file_of_a_presigned_url(images, source_of):
    """The signature is for the image alone; the source's own keys read the file beside it."""
    images.put("images", "v3/disk.raw", CONTENT)
    images.put("images", "v3/disk.raw.sha256", hashlib.sha256(CONTENT).hexdigest().encode())
    url = ImageUrl.parse(images.client().presigned_get_object("images", "v3/disk.raw"))
    with_keys, without = source_of(MinioSettings, images), source_of_nobody(images)
    found = await with_retries(lambda: discover(with_keys, url), 8)
    assert found.checksum == Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
    assert found.origin == f"{images.url}/images/v3/disk.raw.sha256"
    nothing = await with_retries(lambda: discover(without, url), 8)
    assert (nothing.checksum, "disk.raw.sha256" in nothing.missing) == (None, True)
    await with_keys.aclose()
    await without.aclose()


async def test_requester_pays(images, source_of, tmp_path):
    """The header is signed in every request, and MinIO accepts it; without the setting it is not sent."""
    trusted = ssl.create_default_context(cafile=str(images.ca_file))

    async def forward(request, client):
        store = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", int(images.host.rpartition(":")[2]), ssl_context=trusted, https_compatible=True
        )
        head = [
            f"{request.method} {request.target} HTTP/1.1",
            *(f"{name}: {text}" for name, text in request.headers.items()),
        ]
        async with store:
            await store.send_all("\r\n".join([*head, "connection: close", "", ""]).encode())
            async for piece in store:
                await client.send_all(piece)

    async with raw_server(forward) as recorder:
        for setting in (True, False):
            recorder.requests.clear()
            source = source_of(MinioSettings, images, endpoint=recorder.url, ca_file=None, requester_pays=setting)
            url = f"{recorder.url}/images/disk.qcow2"
            image = await source.stat(ImageUrl.parse(url))
            assert await save(source, url, tmp_path / "out", version=image.version) == (CONTENT, 0)
            assert [request.method for request in recorder.requests] == ["HEAD", "GET"]
            for request in recorder.requests:
                assert request.headers.get("x-amz-request-payer") == ("requester" if setting else None)
                assert ("x-amz-request-payer" in request.headers["authorization"]) == setting
            await source.aclose()


async def test_two_endpoints_with_different_keys(images, other_store, source_of, tmp_path):
    other_store.client().make_bucket("images")
    other_store.put("images", "disk.qcow2", CONTENT[::-1])
    one, two = source_of(MinioSettings, images, name="one"), source_of(MinioSettings, other_store, name="two")
    urls = [ImageUrl.parse(f"{store.url}/images/disk.qcow2") for store in (images, other_store)]
    assert [[source.owns(url) for url in urls] for source in (one, two)] == [
        [True, False],
        [False, True],
    ]
    results = {}

    async def fetch(source, url, name):
        results[name] = (await save(source, url, tmp_path / name))[0]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, one, urls[0], "one")
        nursery.start_soon(fetch, two, urls[1], "two")
    assert results == {"one": CONTENT, "two": CONTENT[::-1]}
    await one.aclose()
    await two.aclose()


async def test_keys_from_the_environment(images, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIO_ACCESS_KEY", images.access_key)
    monkeypatch.setenv("MINIO_SECRET_KEY", images.secret_key)
    settings = MinioSettings(endpoint=images.url, ca_file=str(images.ca_file))
    source = S3Source(settings, BackEndContext("lab", tmp_path))
    assert (await source.stat(ImageUrl.parse(f"{images.url}/images/disk.qcow2"))).size == len(CONTENT)
    await source.aclose()


def source_of_nobody(store):
    settings = MinioSettings(endpoint=store.url, ca_file=str(store.ca_file), credentials="anonymous")
    return S3Source(settings, BackEndContext("lab", store.ca_file.parent))


def _may_read(resource, **more):
    statement = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": [resource], **more}
    return {"Version": "2012-10-17", "Statement": [statement]}


async def _open(source, url, **span):
    async with source.open(ImageUrl.parse(url), **span):
        pass
