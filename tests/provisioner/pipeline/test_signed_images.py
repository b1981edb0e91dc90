"""Jobs whose source demands a signature: what publishers sign counts, and nothing else reaches a volume."""

import gzip
import hashlib
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from provisioner.config import SignatureSettings
from provisioner.contracts import AbsolutePath, Checksum, ImageUrl, Signer
from provisioner.contracts.errors import RemoteUnavailableError
from provisioner.contracts.testing import FakeCloneTarget, FakeImage, FakeSource
from provisioner.jobs import Status
from provisioner.pipeline.dry_run import DryRun
from tests.cancellation.harness import DIGEST, IMAGE, SPEC, URL, Harness
from tests.signers import Cosign, Minisign

pytestmark = pytest.mark.slow  # real gpg

TAMPERED = IMAGE[:1000] + b"!" + IMAGE[1001:]
OTHER = hashlib.sha256(b"other").hexdigest()
FOLDER = "https://images.example.com"
FEDORA = f"{FOLDER}/Fedora-Cloud-Base-Generic-43-1.6.x86_64.raw"
MINISIGN, COSIGN, COSIGN_25519 = Minisign(), Cosign(), Cosign(ed25519=True)


def sums(algorithm, image=IMAGE, name="disk.raw"):
    return f"{OTHER}  other.raw\n{hashlib.new(algorithm, image).hexdigest()}  {name}\n".encode()


# Layout: (kind, the image's url, its unsigned files of an image, its signed files given a signer and an image).
LAYOUTS = {
    "Debian": (
        "openpgp", URL, lambda i: {"SHA512SUMS": sums("sha512", i)},
        lambda sign, i: {"SHA512SUMS.sign": sign.sign("publisher", sums("sha512", i), "--armor")},
    ),
    "Ubuntu": (
        "openpgp", URL, lambda i: {"SHA256SUMS": sums("sha256", i)},
        lambda sign, i: {"SHA256SUMS.gpg": sign.sign("publisher", sums("sha256", i))},
    ),
    "AlmaLinux": (
        "openpgp", URL, lambda i: {"CHECKSUM": sums("sha256", i)},
        lambda sign, i: {"CHECKSUM.asc": sign.sign("publisher", sums("sha256", i), "--armor")},
    ),
    "openSUSE": (
        "openpgp", URL, lambda i: {"disk.raw.sha256": f"{hashlib.sha256(i).hexdigest()}  disk.raw\n".encode()},
        lambda sign, i: {
            "disk.raw.sha256.asc": sign.sign("publisher", f"{hashlib.sha256(i).hexdigest()}  disk.raw\n".encode())
        },
    ),
    "Fedora": (
        "openpgp", FEDORA, lambda i: {},
        lambda sign, i: {
            "Fedora-Cloud-43-1.6-x86_64-CHECKSUM": sign.clear_sign(
                "publisher",
                f"# x\nSHA256 ({FEDORA.rpartition('/')[2]}) = {hashlib.sha256(i).hexdigest()}\n".encode(),
            )
        },
    ),
    "Arch Linux": (
        "openpgp", URL, lambda i: {"disk.raw.SHA256": sums("sha256", i)},
        lambda sign, i: {"disk.raw.sig": sign.sign("publisher", i)},
    ),
    "without checksums": ("openpgp", URL, lambda i: {}, lambda sign, i: {"disk.raw.asc": sign.sign("publisher", i)}),
    "minisign of sums": (
        "minisign", URL, lambda i: {"SHA256SUMS": sums("sha256", i)},
        lambda sign, i: {"SHA256SUMS.minisig": MINISIGN.sign(sums("sha256", i))},
    ),
    "minisign of the image": (
        "minisign", URL, lambda i: {}, lambda sign, i: {"disk.raw.minisig": MINISIGN.sign(i)}
    ),
    "cosign of sums": (
        "cosign", URL, lambda i: {"SHA256SUMS": sums("sha256", i)},
        lambda sign, i: {"SHA256SUMS.bundle": COSIGN.old_bundle(sums("sha256", i))},
    ),
    "cosign of the image": (
        "cosign", URL, lambda i: {}, lambda sign, i: {"disk.raw.sigstore.json": COSIGN.new_bundle(i)}
    ),
    "cosign of the image, old": (
        "cosign", URL, lambda i: {}, lambda sign, i: {"disk.raw.cosign.bundle": COSIGN.old_bundle(i)}
    ),
}  # fmt: skip
KEYS = {"openpgp": None, "minisign": MINISIGN.id, "cosign": COSIGN.fingerprint}


class Publisher:
    """A publisher's server and the demand for its signatures."""

    def __init__(self, folder, gpg, layout, *, target=None, **settings):
        self.gpg, self.key_file = gpg, folder / "key"
        self.kind, self.url, self.unsigned, self.signed = LAYOUTS[layout]
        self.put_key()
        name = "keyring" if self.kind == "openpgp" else "public_key"
        self.demand = SignatureSettings(kind=self.kind, **{name: AbsolutePath(self.key_file)}, **settings)
        self.source = FakeSource({})
        self.harness = Harness(folder, source=self.source, target=target)
        self.harness.back_ends.signatures = {"main": self.demand}
        self.spec = msgspec.structs.replace(SPEC, image_url=ImageUrl.parse(self.url), checksum=None)
        self.publish()

    def put_key(self, *names):
        if self.kind == "openpgp":
            self.key_file.write_bytes(self.gpg.keyring(*(names or ["publisher"])))
        else:
            self.key_file.write_bytes((MINISIGN if self.kind == "minisign" else COSIGN).public_key)

    def publish(self, image=IMAGE, *, unsigned=None, signed=None):
        """Publish the image, with files made for other bytes if these are given."""
        files = self.unsigned(image if unsigned is None else unsigned)
        files |= self.signed(self.gpg, image if signed is None else signed)
        self.source.images = {self.url: FakeImage(image, hashlib.sha256(image).hexdigest())}
        self.source.images |= {f"{FOLDER}/{name}": FakeImage(content) for name, content in files.items()}

    def downloads(self):
        """Return how often the image was downloaded, and forget it."""
        count = sum(url == self.url for url, _, _ in self.source.opens)
        self.source.opens.clear()
        return count

    @property
    def signer_key(self):
        return KEYS[self.kind] or self.gpg.fingerprints["publisher"]


@pytest.fixture
def publisher(folder, gpg):
    return lambda layout, **more: Publisher(folder, gpg, layout, **more)


@pytest.mark.parametrize("target", [None, FakeCloneTarget])
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_layout(publisher, folder, layout, target):
    """The url alone works; who signed it stands in the job, the cache and the volume, also after a restart."""
    site = publisher(layout, target=target(folder / "main", name="main") if target else None)
    harness = site.harness
    async with harness.running():
        job = await harness.run(site.spec)
        assert (job.status, job.error) == (Status.COMPLETED, None)
        assert (job.signed_by.kind, job.signed_by.key) == (site.kind, site.signer_key)
        assert harness.volume() == IMAGE
        assert (await harness.target.find("web01")).provenance.signed_by == f"{site.kind}:{site.signer_key}"
        assert site.downloads() == 1
    async with harness.running():
        (entry,) = harness.cache.entries()
        assert entry.signed_by == job.signed_by
        again = await harness.run(msgspec.structs.replace(site.spec, volume_name="web02"))
        assert (again.status, again.error, again.cache_hit) == (Status.COMPLETED, None, True)
        assert again.signed_by == job.signed_by
        assert site.downloads() == 0
        harness.assert_nothing_left()


@pytest.mark.parametrize("target", [None, FakeCloneTarget])
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_tampered_image(publisher, folder, layout, target):
    """The image and the unsigned files were replaced on the server; the signature was not."""
    site = publisher(layout, target=target(folder / "main", name="main") if target else None)
    site.publish(TAMPERED, signed=IMAGE)
    async with site.harness.running() as harness:
        job = await harness.run(site.spec)
        assert job.status is Status.FAILED
        assert any(word in job.error for word in ("altered", "was expected by the signature", "was signed"))
        assert harness.volume() is None
        assert harness.cache.entries() == []
        harness.assert_nothing_left()


@pytest.mark.parametrize("layout", ["Debian", "Ubuntu", "openSUSE", "minisign of sums", "cosign of sums"])
async def test_only_the_image_was_replaced(publisher, layout):
    site = publisher(layout)
    site.publish(TAMPERED, unsigned=IMAGE, signed=IMAGE)
    async with site.harness.running() as harness:
        job = await harness.run(site.spec)
        assert job.status is Status.FAILED
        assert "was expected by the signature https://images.example.com/" in job.error
        assert harness.volume() is None
        harness.assert_nothing_left()


@pytest.mark.parametrize("checksum", [None, DIGEST])
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_unsigned(publisher, layout, checksum):
    """Neither the publisher's own checksum nor the request's takes the place of a signature."""
    site = publisher(layout)
    signatures = site.signed(site.gpg, IMAGE)
    for name in signatures:
        del site.source.images[f"{FOLDER}/{name}"]
    spec = msgspec.structs.replace(site.spec, checksum=Checksum.parse(checksum) if checksum else None)
    async with site.harness.running() as harness:
        job = await harness.run(spec)
        assert job.status is Status.FAILED
        assert " signature was found for https://images.example.com/" in job.error
        assert "not found: " in job.error
        assert "Name the publisher's file in files of the signature's table" in job.error
        assert site.downloads() == 0
        dry_run = DryRun(harness.pipeline, spec)
        await dry_run.run()
        assert [str(error) for error in dry_run.refusals] == [job.error]
        harness.assert_nothing_left()


async def test_signed_by_a_stranger(publisher, gpg):
    site = publisher("Debian")
    site.put_key("stranger")
    async with site.harness.running() as harness:
        job = await harness.run(site.spec)
        assert job.status is Status.FAILED
        assert job.error == (
            "the signature https://images.example.com/SHA512SUMS.sign was made with the key "
            f"{gpg.fingerprints['publisher'][-16:]}, which is not in {site.key_file}; "
            "if you trust this key, add it there"
        )
        assert site.downloads() == 0


async def test_sums_of_another_image(publisher):
    """The signed list of another image of this publisher does not vouch for this one, even under a sidecar's name."""
    site = publisher("openSUSE")
    other = f"{hashlib.sha256(IMAGE).hexdigest()}  another.raw\n".encode()
    site.source.images[f"{FOLDER}/disk.raw.sha256"] = FakeImage(other)
    site.source.images[f"{FOLDER}/disk.raw.sha256.asc"] = FakeImage(site.gpg.sign("publisher", other))
    async with site.harness.running() as harness:
        job = await harness.run(site.spec)
        assert job.status is Status.FAILED
        assert "disk.raw.sha256: it does not list disk.raw" in job.error


async def test_text_around_the_signed_part(publisher):
    """A digest beside the signed part of a clear-signed list does not count."""
    site = publisher("Fedora")
    name = FEDORA.rpartition("/")[2]
    site.publish(TAMPERED, signed=IMAGE)
    list_url = f"{FOLDER}/Fedora-Cloud-43-1.6-x86_64-CHECKSUM"
    signed = site.source.images[list_url].data
    digest = hashlib.sha256(TAMPERED).hexdigest()
    site.source.images[list_url] = FakeImage(f"SHA512 (x) = y\n{digest}  {name}\n".encode() + signed)
    async with site.harness.running() as harness:
        job = await harness.run(site.spec)
        assert job.status is Status.FAILED
        assert harness.volume() is None


@pytest.mark.parametrize("checksum", ["sha256", "sha512"])
@pytest.mark.parametrize("layout", ["Debian", "Ubuntu", "cosign of the image", "minisign of the image"])
async def test_request_with_its_own_checksum(publisher, layout, checksum):
    """Both must hold: the request's checksum and the signature."""
    site = publisher(layout)
    right = Checksum(checksum, hashlib.new(checksum, IMAGE).hexdigest())
    wrong = Checksum(checksum, hashlib.new(checksum, b"other").hexdigest())
    async with site.harness.running() as harness:
        job = await harness.run(msgspec.structs.replace(site.spec, checksum=wrong))
        assert job.status is Status.FAILED
        assert harness.cache.entries() == []
        job = await harness.run(msgspec.structs.replace(site.spec, checksum=right))
        assert (job.status, job.error) == (Status.COMPLETED, None)
        assert job.signed_by.key == site.signer_key
        harness.assert_nothing_left()


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_cached_without_a_signature(publisher, layout):
    """An image that came in before the signature was demanded is verified again, without another download."""
    site = publisher(layout)
    harness = site.harness
    harness.back_ends.signatures = {}
    spec = msgspec.structs.replace(site.spec, checksum=Checksum.parse(DIGEST))
    async with harness.running():
        job = await harness.run(spec)
        assert (job.status, job.signed_by, site.downloads()) == (Status.COMPLETED, None, 1)
        harness.back_ends.signatures = {"main": site.demand}
        job = await harness.run(msgspec.structs.replace(spec, volume_name="web02"))
        assert (job.status, job.error, job.cache_hit, site.downloads()) == (Status.COMPLETED, None, True, 0)
        assert job.signed_by.key == site.signer_key
        assert harness.cache.entries()[0].signed_by == job.signed_by
        site.source.steps.fail_at = {"stat": RemoteUnavailableError("refused")}
        job = await harness.run(msgspec.structs.replace(spec, volume_name="web03"))
        assert (job.status, job.error, job.cache_hit) == (Status.COMPLETED, None, True)
        assert job.signed_by.key == site.signer_key


@pytest.mark.parametrize("target", [None, FakeCloneTarget])
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_cached_and_never_signed(publisher, folder, layout, target):
    """An unsigned image in the cache, or in a base, does not satisfy a job that demands a signature."""
    site = publisher(layout, target=target(folder / "main", name="main") if target else None)
    harness = site.harness
    harness.back_ends.signatures = {}
    site.publish(TAMPERED, signed=IMAGE)
    spec = msgspec.structs.replace(site.spec, checksum=Checksum("sha256", hashlib.sha256(TAMPERED).hexdigest()))
    async with harness.running():
        assert (await harness.run(spec)).status is Status.COMPLETED
        harness.back_ends.signatures = {"main": site.demand}
        for checksum in (spec.checksum, None):
            job = await harness.run(msgspec.structs.replace(spec, volume_name="web02", checksum=checksum))
            assert job.status is Status.FAILED
            assert harness.volume("web02") is None
        assert harness.cache.entries()[0].signed_by is None
        harness.assert_nothing_left()


async def test_changed_keyring(publisher):
    """What was verified with another key file is verified again: a key may have been revoked or removed."""
    site = publisher("Ubuntu")
    spec = msgspec.structs.replace(site.spec, checksum=Checksum.parse(DIGEST))
    async with site.harness.running() as harness:
        assert (await harness.run(spec)).status is Status.COMPLETED
        site.put_key("stranger")
        job = await harness.run(msgspec.structs.replace(spec, volume_name="web02"))
        assert job.status is Status.FAILED
        assert "which is not in" in job.error
        site.put_key("stranger", "publisher")
        job = await harness.run(msgspec.structs.replace(spec, volume_name="web03"))
        assert (job.status, job.signed_by.kind) == (Status.COMPLETED, "openpgp")


async def test_missing_keyring(publisher):
    site = publisher("Debian")
    site.key_file.unlink()
    async with site.harness.running() as harness:
        job = await harness.run(site.spec)
        assert (job.status, job.error) == (
            Status.FAILED, f"the keyring {site.key_file} cannot be read: No such file or directory",
        )  # fmt: skip


async def test_demand_of_a_named_image(publisher):
    """It takes the place of what the source demands, and stays with the job after a restart."""
    site = publisher("Ubuntu")
    site.harness.back_ends.signatures = {"main": msgspec.structs.replace(site.demand, keyring=AbsolutePath("/missing"))}
    async with site.harness.running() as harness:
        assert (await harness.run(site.spec)).status is Status.FAILED
        job = await harness.run(msgspec.structs.replace(site.spec, signature=site.demand))
        assert (job.status, job.error) == (Status.COMPLETED, None)
    async with site.harness.running() as harness:
        stored = await harness.store.get(job.job_id)
        assert stored.spec.signature == site.demand
        assert stored.signed_by == job.signed_by


@pytest.mark.parametrize(
    ("layout", "files", "works"),
    [
        ("Debian", ["{dir}/SHA512SUMS.sign"], True),
        ("Debian", [f"{FOLDER}/SHA512SUMS.sign"], True),
        ("Debian", ["{dir}/SHA256SUMS.sign"], False),
        ("Debian", ["https://elsewhere.example.com/SHA512SUMS.sign"], False),
        ("Fedora", ["{dir}/Fedora-Cloud-43-1.6-x86_64-CHECKSUM"], True),
        ("Arch Linux", ["{dir}/{name}.sig"], True),
        ("cosign of the image, old", ["{dir}/{name}.cosign.bundle"], True),
    ],
)
async def test_configured_files(publisher, layout, files, works):
    """Only the configured files are looked for."""
    site = publisher(layout, files=files)
    async with site.harness.running() as harness:
        job = await harness.run(site.spec)
        assert (job.status is Status.COMPLETED) is works, job.error
        if not works:
            assert "signature was found" in job.error
            assert ("belongs to another source" in job.error) is ("elsewhere" in files[0])


async def test_clear_signed_file_without_a_plain_one(publisher):
    """``SHA256SUMS.asc`` may be a clear-signed list rather than a detached signature."""
    site = publisher("Ubuntu", files=["{dir}/SHA256SUMS.asc"])
    site.source.images[f"{FOLDER}/SHA256SUMS.asc"] = FakeImage(site.gpg.clear_sign("publisher", sums("sha256")))
    del site.source.images[f"{FOLDER}/SHA256SUMS"]
    async with site.harness.running() as harness:
        job = await harness.run(site.spec)
        assert (job.status, job.error) == (Status.COMPLETED, None)


async def test_one_good_signature_is_enough(publisher):
    """A list that is signed by a stranger does no harm beside one that is signed by the publisher."""
    site = publisher("Ubuntu")
    site.source.images[f"{FOLDER}/SHA256SUMS.sign"] = FakeImage(site.gpg.sign("stranger", sums("sha256")))
    async with site.harness.running() as harness:
        job = await harness.run(site.spec)
        assert (job.status, job.error) == (Status.COMPLETED, None)


async def test_server_down_while_it_is_asked_for_a_signature(publisher):
    """The job tries again, and then says what it waited for."""
    site = publisher("Debian")
    site.source.steps.fail_at = {"open": RemoteUnavailableError("refused")}
    async with site.harness.running() as harness:
        job = await harness.run(site.spec)
        assert job.status is Status.FAILED
        assert "no OpenPGP signature was found for https://images.example.com/disk.raw: " in job.error
        assert "refused" in job.error


@pytest.mark.parametrize("step", ["open", "read", "close"])
async def test_cancel_while_it_is_asked_for_a_signature(publisher, step):
    site = publisher("Debian")
    site.source.steps.hang_at = step
    async with site.harness.running() as harness:
        job_id = await harness.submit(site.spec)
        await site.source.steps.reached.wait()
        assert (await harness.supervisor.cancel(job_id)).status is Status.CANCELLED
        assert harness.volume() is None
        harness.assert_nothing_left()


@pytest.mark.parametrize(
    ("layout", "signature", "says"),
    [
        ("minisign of the image", lambda: {"disk.raw.minisig": MINISIGN.sign(IMAGE, legacy=True)}, "'minisign -SH'"),
        ("cosign of the image", lambda: {"disk.raw.bundle": COSIGN_25519.old_bundle(IMAGE)}, "use an ECDSA key"),
    ],
)
async def test_signature_of_all_bytes(publisher, layout, signature, says):
    """What is only checked with the whole image in memory is refused, with the way out."""
    site = publisher(layout)
    site.publish(signed=b"")
    site.source.images = {site.url: FakeImage(IMAGE)}
    site.source.images |= {f"{FOLDER}/{name}": FakeImage(content) for name, content in signature().items()}
    if site.kind == "cosign":
        site.key_file.write_bytes(COSIGN_25519.public_key)
    async with site.harness.running() as harness:
        job = await harness.run(site.spec)
        assert job.status is Status.FAILED
        assert says in job.error


async def test_dry_run_says_who_signed(publisher):
    site = publisher("Debian")
    async with site.harness.running() as harness:
        dry_run = DryRun(harness.pipeline, site.spec)
        await dry_run.run()
        assert dry_run.refusals == []
        assert replace(dry_run.plan.signed_by, name="") == Signer("openpgp", site.signer_key)
        assert site.downloads() == 0


class Labelled(FakeSource):
    """A server that labels the image as compressed for the transfer."""

    @asynccontextmanager
    async def open(self, url, start=0, stop=None, version=None):
        async with super().open(url, start, stop, version) as stream:
            stream.content_encoding = "gzip" if url.text == URL else None
            yield stream


@pytest.mark.parametrize("layout", ["Debian", "Ubuntu", "minisign of sums", "without checksums"])
@pytest.mark.parametrize("image", [IMAGE, TAMPERED], ids=["right", "tampered"])
async def test_compressed_for_the_transfer(publisher, layout, image):
    """Decoding an image does not get round the signature, whatever unsigned files lie beside it."""
    site = publisher(layout)
    site.source.__class__ = Labelled
    site.source.images[URL] = FakeImage(gzip.compress(image), "v1")
    digest = hashlib.sha256(image).hexdigest()
    site.source.images[f"{FOLDER}/disk.raw.sha256"] = FakeImage(f"{digest}  disk.raw\n".encode())
    harness = site.harness
    async with harness.running():
        job = await harness.run(site.spec)
        if image == IMAGE and layout != "without checksums":
            assert (job.status, job.error, harness.volume()) == (Status.COMPLETED, None, IMAGE)
            assert job.signed_by.key == site.signer_key
        elif image == TAMPERED:
            assert (job.status, harness.volume(), harness.cache.entries()) == (Status.FAILED, None, [])
