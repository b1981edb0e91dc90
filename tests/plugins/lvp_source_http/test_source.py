import hashlib
import ssl

import pytest
import trio
import trustme

from lvp_source_http import HttpSettings, HttpSource
from provisioner.contracts import BackEndContext, ImageUrl, SecretRef
from provisioner.contracts.errors import (
    RemoteDeniedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SourceError,
    UrlNotAllowedError,
)
from tests.servers.nginx import nginx
from tests.servers.raw import holds, raw_server, says

pytestmark = pytest.mark.slow  # a real nginx

CONTENT = bytes(range(256)) * 4096


def source(tmp_path, urls, **settings):
    return HttpSource(HttpSettings(urls=urls, **settings), BackEndContext("lab", tmp_path))


def secret(tmp_path, text, name="secret"):
    path = tmp_path / name
    path.write_text(text)
    return SecretRef.parse(f"file:{path}")


async def fetch(image_source, url, path, **span):
    """Fetch a URL with ``save``; return the bytes and their start offset."""
    with path.open("w+b") as file:
        async with image_source.open(ImageUrl.parse(url), **span) as stream:
            marks = []
            end = await stream.save(file.fileno(), marks.append)
        assert marks == sorted(marks)
        assert not marks or marks[-1] == end
        return path.read_bytes()[stream.start : end], stream.start


@pytest.fixture
def web(tmp_path):
    root = tmp_path / "root"
    with nginx(root, tmp_path / "nginx") as server:
        (root / "disk image+1.qcow2").write_bytes(CONTENT)
        (root / "disk.qcow2").write_bytes(CONTENT)
        (root / "empty").write_bytes(b"")
        yield server


async def test_fetch_over_http_and_private_tls(web, tmp_path):
    lab = source(tmp_path, [web.url, web.tls_url], ca_file=str(web.ca_file))
    for base in (web.url, web.tls_url):
        image = await lab.stat(ImageUrl.parse(f"{base}/disk.qcow2"))
        assert (image.size, image.accepts_ranges) == (len(CONTENT), True)
        assert image.version is not None
        got, start = await fetch(lab, image.url, tmp_path / "out", version=image.version)
        assert (got, start) == (CONTENT, 0)
        got, start = await fetch(lab, image.url, tmp_path / "out", start=1000, stop=5000, version=image.version)
        assert (got, start) == (CONTENT[1000:5000], 1000)
    await lab.aclose()


async def test_stat_quoted_name(web, tmp_path):
    lab = source(tmp_path, [web.url])
    assert (await lab.stat(ImageUrl.parse(f"{web.url}/disk%20image+1.qcow2"))).size == len(CONTENT)
    await lab.aclose()


async def test_fetch_empty_file(web, tmp_path):
    lab = source(tmp_path, [web.url])
    assert (await lab.stat(ImageUrl.parse(f"{web.url}/empty"))).size == 0
    assert await fetch(lab, f"{web.url}/empty", tmp_path / "out") == (b"", 0)
    await lab.aclose()


async def test_stat_missing_image(web, tmp_path):
    lab = source(tmp_path, [web.url])
    with pytest.raises(RemoteNotFoundError, match=r"none\.qcow2 does not exist"):
        await lab.stat(ImageUrl.parse(f"{web.url}/none.qcow2"))
    await lab.aclose()


async def test_stat_untrusted_certificate(web, tmp_path):
    lab = source(tmp_path, [web.tls_url])
    with pytest.raises(SourceError, match="certificate is not trusted") as caught:
        await lab.stat(ImageUrl.parse(f"{web.tls_url}/disk.qcow2"))
    assert not caught.value.temporary
    await lab.aclose()


async def test_basic_auth_from_secret_file(web, tmp_path):
    url = f"{web.url}/basic/disk.qcow2"
    right = source(tmp_path, [web.url], username="lab", password=secret(tmp_path, "open sesame\n"))
    assert (await right.stat(ImageUrl.parse(url))).size == len(CONTENT)
    wrong = source(tmp_path, [web.url], username="lab", password=secret(tmp_path, "hunter2", "wrong"))
    with pytest.raises(RemoteDeniedError) as caught:
        await wrong.stat(ImageUrl.parse(url))
    assert "hunter2" not in str(caught.value)
    assert not caught.value.temporary
    await right.aclose()
    await wrong.aclose()


async def test_renewed_secret_is_used_at_once(web, tmp_path):
    url, password = f"{web.url}/basic/disk.qcow2", secret(tmp_path, "old")
    lab = source(tmp_path, [web.url], username="lab", password=password)
    with pytest.raises(RemoteDeniedError):
        await lab.stat(ImageUrl.parse(url))
    secret(tmp_path, "open sesame")
    assert (await lab.stat(ImageUrl.parse(url))).size == len(CONTENT)
    await lab.aclose()


async def test_client_certificate(web, tmp_path):
    certificate = tmp_path / "client.pem"
    web.ca.issue_cert("host.example.com").private_key_and_cert_chain_pem.write_to_path(certificate)
    url, trusted = f"{web.tls_url}/certificate/disk.qcow2", {"ca_file": str(web.ca_file)}
    without = source(tmp_path, [web.tls_url], **trusted)
    with pytest.raises(RemoteDeniedError):
        await without.stat(ImageUrl.parse(url))
    with_it = source(tmp_path, [web.tls_url], client_certificate=str(certificate), **trusted)
    assert (await with_it.stat(ImageUrl.parse(url))).size == len(CONTENT)
    await without.aclose()
    await with_it.aclose()


async def test_missing_ca_file_is_named(tmp_path):
    lab = source(tmp_path, ["https://127.0.0.1:1/"], ca_file="/nowhere/ca.pem")
    with pytest.raises(SourceError, match=r"/nowhere/ca\.pem.*No such file"):
        await lab.stat(ImageUrl.parse("https://127.0.0.1:1/x"))


async def test_encrypted_client_key_fails(tmp_path):
    from cryptography.hazmat.primitives import serialization

    pem = trustme.CA().issue_cert("a.example.com").private_key_and_cert_chain_pem.bytes()
    key = serialization.load_pem_private_key(pem, None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    (tmp_path / "client.pem").write_bytes(pem[pem.index(b"-----BEGIN CERT") :])
    (tmp_path / "client.key").write_bytes(locked)
    lab = source(
        tmp_path,
        ["https://127.0.0.1:1/"],
        client_certificate=str(tmp_path / "client.pem"),
        client_key=str(tmp_path / "client.key"),
    )
    with pytest.raises(SourceError, match="cannot be used"):
        await lab.stat(ImageUrl.parse("https://127.0.0.1:1/x"))


async def test_credentials_not_sent_after_redirect(tmp_path):
    moved = "302 Found\nLocation: {}/disk?signature=abc\nContent-Length: 0"
    async with raw_server(holds(CONTENT)) as store, raw_server(says(moved.format(store.url))) as front:
        lab = source(
            tmp_path,
            [front.url, store.url],
            bearer_token=secret(tmp_path, "s3cret"),
            headers={"X-Team": secret(tmp_path, "blue", "team")},
        )
        assert (await lab.stat(ImageUrl.parse(f"{front.url}/disk"))).size == len(CONTENT)
        assert front.requests[0].headers["authorization"] == "Bearer s3cret"
        assert front.requests[0].headers["x-team"] == "blue"
        assert store.requests[0].target == "/disk?signature=abc"
        assert not {"authorization", "x-team"} & set(store.requests[0].headers)
        await lab.aclose()


async def test_redirect_outside_configured_urls(tmp_path):
    async with raw_server(holds(CONTENT)) as elsewhere:
        moved = says(f"302 Found\nLocation: {elsewhere.url}/disk\nContent-Length: 0")
        async with raw_server(moved) as front:
            lab = source(tmp_path, [front.url])
            with pytest.raises(UrlNotAllowedError, match="redirects there"):
                await lab.stat(ImageUrl.parse(f"{front.url}/disk"))
            assert elsewhere.requests == []
            open_to_it = source(tmp_path, [front.url], redirect_urls=[elsewhere.url])
            assert (await open_to_it.stat(ImageUrl.parse(f"{front.url}/disk"))).size == len(CONTENT)
            assert not open_to_it.owns(ImageUrl.parse(f"{elsewhere.url}/disk"))
            await lab.aclose()
            await open_to_it.aclose()


async def test_foreign_url_sends_no_request(tmp_path):
    async with raw_server(holds(CONTENT)) as server:
        lab = source(tmp_path, [f"{server.url}/pub"])
        for url in (f"{server.url}/public", f"{server.url}/", "http://127.0.0.1/pub"):
            assert not lab.owns(ImageUrl.parse(url))
            with pytest.raises(UrlNotAllowedError):
                await lab.stat(ImageUrl.parse(url))
            with pytest.raises(UrlNotAllowedError):
                async with lab.open(ImageUrl.parse(url)):
                    pass
        assert server.requests == []


async def test_mirrors_in_order_then_origin(tmp_path):
    async with raw_server(says("503 Busy\nContent-Length: 0")) as busy, raw_server(holds(CONTENT)) as origin:
        lab = source(
            tmp_path,
            [f"{origin.url}/pub"],
            mirrors=["http://127.0.0.1:1/mirror", f"{busy.url}/copy/"],
            bearer_token=secret(tmp_path, "s3cret"),
        )
        url = f"{origin.url}/pub/a/disk?x=1"
        assert (await lab.stat(ImageUrl.parse(url))).url.text == url
        assert await fetch(lab, url, tmp_path / "out") == (CONTENT, 0)
        assert [request.target for request in busy.requests] == ["/copy/a/disk?x=1"] * 2
        assert all("authorization" not in request.headers for request in busy.requests)
        assert origin.requests[0].headers["authorization"] == "Bearer s3cret"
        await lab.aclose()


async def test_mirror_fails_during_read(tmp_path):
    """The error is raised; the origin is tried only if a mirror fails to open."""
    cut = says("200 OK\nContent-Length: 100", b"only this")
    async with raw_server(cut) as mirror, raw_server(holds(CONTENT)) as origin:
        lab = source(tmp_path, [origin.url], mirrors=[mirror.url])
        with pytest.raises(RemoteUnavailableError, match="too early"):
            await fetch(lab, f"{origin.url}/disk", tmp_path / "out")
        assert origin.requests == []
        await lab.aclose()


async def test_proxy_for_plain_http(tmp_path):
    async with raw_server(holds(CONTENT)) as proxy:
        lab = source(
            tmp_path,
            ["http://images.example.com/"],
            proxy=proxy.url,
            proxy_username="lab",
            proxy_password=secret(tmp_path, "pass word"),
        )
        assert (await lab.stat(ImageUrl.parse("http://images.example.com/disk"))).size == len(CONTENT)
        assert proxy.requests[0].target == "http://images.example.com/disk"
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic bGFiOnBhc3Mgd29yZA=="
        await lab.aclose()


async def test_environment_proxy_needs_trust_env(tmp_path, monkeypatch):
    async with raw_server(holds(CONTENT)) as proxy, raw_server(holds(b"direct")) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        direct, proxied = source(tmp_path, [server.url]), source(tmp_path, [server.url], trust_env=True)
        assert (await direct.stat(ImageUrl.parse(f"{server.url}/disk"))).size == len(b"direct")
        assert (await proxied.stat(ImageUrl.parse(f"{server.url}/disk"))).size == len(CONTENT)
        await direct.aclose()
        await proxied.aclose()


async def test_unusable_secret_is_not_quoted(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH", raising=False)
    for ref, words in (
        (SecretRef.parse("file:/nowhere/secret"), "/nowhere/secret cannot be read"),
        (SecretRef.parse("env:NO_SUCH"), "NO_SUCH is not set"),
        (secret(tmp_path, "hunter2\nX-Evil: 1"), "line breaks"),
    ):
        lab = source(tmp_path, ["http://127.0.0.1:1/"], bearer_token=ref)
        with pytest.raises(SourceError, match=words) as caught:
            await lab.stat(ImageUrl.parse("http://127.0.0.1:1/x"))
        assert "hunter2" not in str(caught.value)
        await lab.aclose()


async def test_rate_limit_is_shared_by_transfers(tmp_path):
    content = bytes(400_000)
    async with raw_server(holds(content)) as server:
        lab = source(tmp_path, [server.url], rate_limit=1_000_000)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for name in ("one", "two"):
                nursery.start_soon(fetch, lab, f"{server.url}/disk", tmp_path / name)
        assert trio.current_time() - begun >= 0.8
        assert hashlib.sha256((tmp_path / "two").read_bytes()).digest() == hashlib.sha256(content).digest()
        await lab.aclose()


def test_create_source_without_io(tmp_path, monkeypatch):
    monkeypatch.setattr(ssl, "create_default_context", None)
    source(tmp_path, ["https://a.example.com/"], ca_file="/nowhere", bearer_token=SecretRef.parse("file:/nowhere"))
