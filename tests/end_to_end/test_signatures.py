"""Images that must be signed: the real daemon, gpgv and configuration, and a publisher as Debian is one."""

import hashlib
import json
import shutil

import pytest

from tests.end_to_end.conftest import same
from tests.servers.nginx import nginx
from tests.signers import gpg_home

pytestmark = pytest.mark.slow


@pytest.fixture
def publisher(images, tmp_path):
    """Serve an image with a signed SHA512SUMS; yield its url, the folder, gpg, and the image."""
    image, folder = images["zlib.qcow2"], tmp_path / "pub"
    folder.mkdir()
    shutil.copyfile(image.file, folder / "debian.qcow2")
    sums = f"{hashlib.sha512(image.file.read_bytes()).hexdigest()}  debian.qcow2\n".encode()
    (folder / "SHA512SUMS").write_bytes(sums)
    with gpg_home() as gpg, nginx(folder, tmp_path / "nginx") as server:
        gpg.new_key("debian")
        (folder / "SHA512SUMS.sign").write_bytes(gpg.sign("debian", sums, "--armor"))
        yield f"{server.url}/listed/", folder, gpg, image


@pytest.fixture
def daemon(make_daemon, publisher, tmp_path):
    url, _, gpg, _ = publisher
    keyring = tmp_path / "debian.gpg"
    keyring.write_bytes(gpg.keyring("debian", armored=True))
    daemon = make_daemon()
    signature = {"kind": "openpgp", "keyring": str(keyring), "files": ["{dir}/SHA512SUMS.sign"]}
    daemon.config["sources"] = {"debian": {"plugin": "http", "urls": [url], "signature": signature}}
    daemon.start()
    return daemon


def test_signed_image(daemon, publisher):
    """Who signed it stands in the job and the volume, and in the cache after a restart."""
    url, _, gpg, image = publisher
    ended = daemon.lvp("job", "submit", f"{url}debian.qcow2", "web-01", 1, "--wait")
    assert ended.status == 0, ended.err
    assert f"signed by openpgp key {gpg.fingerprints['debian']}" in ended.out + ended.err
    assert same(image, daemon.volume("web-01"))
    daemon.stop()
    daemon.start()
    signer = {"kind": "openpgp", "key": gpg.fingerprints["debian"], "name": "debian <debian@example.com>"}
    (job,) = daemon.call("GET", "/api/v1/jobs").json()["jobs"]
    (cached,) = daemon.call("GET", "/api/v1/cache/images").json()["images"]
    assert (job["signed_by"], cached["signed_by"]) == (signer, signer)
    (volume,) = json.loads(daemon.lvp("volume", "list", "--json").out)["volumes"]
    assert volume["signed_by"] == {"kind": "openpgp", "key": gpg.fingerprints["debian"]}


def test_tampered_checksum_file(daemon, publisher):
    url, folder, _, _ = publisher
    tampered = (folder / "debian.qcow2").read_bytes() + b"!"
    (folder / "debian.qcow2").write_bytes(tampered)
    (folder / "SHA512SUMS").write_text(f"{hashlib.sha512(tampered).hexdigest()}  debian.qcow2\n")
    digest = f"sha256:{hashlib.sha256(tampered).hexdigest()}"
    for checksum in ([], ["--checksum", digest]):
        ended = daemon.lvp("job", "submit", f"{url}debian.qcow2", "web-01", 1, "--wait", *checksum)
        assert ended.status != 0
        assert "SHA512SUMS.sign does not match what it signs" in ended.err
    assert not daemon.volume("web-01").exists()
    assert daemon.call("GET", "/api/v1/cache/images").json()["images"] == []
