"""Tests of signatures in the API: who signed an image, and jobs whose named image demands a signature."""

from __future__ import annotations

import pytest

from provisioner.config import NamedImage, SignatureSettings
from provisioner.contracts import AbsolutePath
from provisioner.contracts.testing import FakeImage
from tests.provisioner.api.conftest import DIGEST, IMAGE, running
from tests.provisioner.api.document import held
from tests.signers import Cosign, Minisign

FOLDER = "http://images.example:8080/debian/"
NEWEST = f"{FOLDER}12.2/debian-12.2.raw"
MINISIGN, COSIGN = Minisign(), Cosign()
SIGNER = {"kind": "minisign", "key": MINISIGN.id, "name": "release 12.2"}
SUMS = f"{DIGEST}  debian-12.2.raw\n".encode()
NAMED = {"image": "debian-12", "volume_name": "web-01", "volume_size_gb": 1}


@pytest.fixture
async def service(folder):
    (folder / "minisign.pub").write_bytes(MINISIGN.public_key)
    (folder / "cosign.pub").write_bytes(COSIGN.public_key)
    minisign = SignatureSettings(kind="minisign", public_key=AbsolutePath(folder / "minisign.pub"))
    cosign = SignatureSettings(kind="cosign", public_key=AbsolutePath(folder / "cosign.pub"))
    url, checksum_url = FOLDER + "{version}/debian-{version}.raw", FOLDER + "{version}/list.txt"
    images = {
        "debian-12": NamedImage(url=url, image_type="raw", signature=minisign),
        "with-list": NamedImage(url=url, image_type="raw", checksum_url=checksum_url, signature=minisign),
        "image-itself": NamedImage(url=url, image_type="raw", checksum_url=checksum_url, signature=cosign),
        "fixed": NamedImage(url=NEWEST, image_type="raw", checksum=DIGEST, signature=minisign),
    }
    async with running(folder, images=images) as made:
        made.source.images |= {
            FOLDER: FakeImage(b'<a href="12.1/">12.1/</a><a href="12.2/">12.2/</a>'),
            NEWEST: FakeImage(IMAGE),
            f"{FOLDER}12.2/SHA256SUMS": FakeImage(SUMS),
            f"{FOLDER}12.2/SHA256SUMS.minisig": FakeImage(MINISIGN.sign(SUMS, comment="release 12.2")),
            f"{FOLDER}12.2/list.txt": FakeImage(SUMS),
            f"{FOLDER}12.2/list.txt.minisig": FakeImage(MINISIGN.sign(SUMS, comment="release 12.2")),
            f"{NEWEST}.minisig": FakeImage(MINISIGN.sign(IMAGE, comment="release 12.2")),
            f"{NEWEST}.sigstore.json": FakeImage(COSIGN.new_bundle(IMAGE)),
        }
        yield made


@pytest.mark.parametrize("image", ["debian-12", "with-list", "fixed"])
async def test_signed_by(service, image):
    """It stands in the job, the cached image and the volume; the volume has no name of the key."""
    job = await service.done({**NAMED, "image": image})
    assert (job["status"], job["signed_by"]) == ("completed", SIGNER)
    (cached,) = (await held(await service.call("GET", "/api/v1/cache/images"), "CachedImageList"))["images"]
    assert cached["signed_by"] == SIGNER
    (volume,) = (await held(await service.call("GET", "/api/v1/volumes"), "VolumeList"))["volumes"]
    assert volume["signed_by"] == {"kind": "minisign", "key": MINISIGN.id}


async def test_image_itself_despite_a_checksum_url(service):
    job = await service.done({**NAMED, "image": "image-itself"})
    assert (job["status"], job["signed_by"]) == ("completed", {"kind": "cosign", "key": COSIGN.fingerprint})


async def test_nothing_is_said_without_a_demand(service):
    service.source.images[f"{NEWEST}.sha256"] = FakeImage(SUMS)
    job = await service.done({"image_url": NEWEST, "volume_name": "web-01", "volume_size_gb": 1, "image_type": "raw"})
    assert job["status"] == "completed"
    assert "signed_by" not in job
    (cached,) = (await held(await service.call("GET", "/api/v1/cache/images"), "CachedImageList"))["images"]
    assert "signed_by" not in cached


@pytest.mark.parametrize("image", ["debian-12", "with-list", "image-itself", "fixed"])
async def test_missing_signature(service, image):
    for url in [url for url in service.source.images if url.endswith((".minisig", ".json"))]:
        del service.source.images[url]
    job = await service.done({**NAMED, "image": image})
    assert job["status"] == "failed"
    assert " signature was found for " in job["error"]


async def test_retry_demands_the_signature_too(service):
    service.source.images[f"{NEWEST}.minisig"] = FakeImage(b"x")
    del service.source.images[f"{FOLDER}12.2/SHA256SUMS.minisig"]
    job = await service.done(NAMED)
    assert (job["status"], "is malformed" in job["error"]) == ("failed", True)
    again = await (await service.call("POST", f"/api/v1/jobs/{job['job_id']}/retry")).get_json()
    assert "is malformed" in (await service.ended(again["job_id"]))["error"]
    service.source.images[f"{NEWEST}.minisig"] = FakeImage(MINISIGN.sign(IMAGE, comment="release 12.2"))
    again = await (await service.call("POST", f"/api/v1/jobs/{job['job_id']}/retry")).get_json()
    assert (await service.ended(again["job_id"]))["signed_by"] == SIGNER


async def test_dry_run(service):
    answer = await service.call("POST", "/api/v1/jobs?dry_run=true", json=NAMED)
    plan = await held(answer, "Plan")
    assert (plan["refusals"], plan["signed_by"]) == ([], SIGNER)
    service.source.images[f"{FOLDER}12.2/SHA256SUMS.minisig"] = FakeImage(Minisign(b"\1" * 8).sign(SUMS))
    del service.source.images[f"{NEWEST}.minisig"]
    plan = await held(await service.call("POST", "/api/v1/jobs?dry_run=true", json=NAMED), "Plan")
    assert "signed_by" not in plan
    (refusal,) = plan["refusals"]
    assert (refusal["error"], "was made with the key 0101010101010101" in refusal["message"]) == ("image error", True)
