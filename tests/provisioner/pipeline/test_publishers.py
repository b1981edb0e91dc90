"""Images as publishers offer them: the url alone is enough, and nothing tampered with gets through.

Each layout is a small copy of the publisher's: its names, its form of checksums, and another image beside it.
"""

import hashlib
from contextlib import asynccontextmanager

import msgspec
import pytest

from lvp_source_http import HttpSettings, HttpSource
from provisioner.contracts import BackEndContext, ImageUrl
from provisioner.jobs import Status
from tests.cancellation.harness import IMAGE, SPEC, Harness
from tests.servers.raw import raw_server, says
from tests.servers.site import site

pytestmark = pytest.mark.slow  # real gpg

OTHER = hashlib.sha256(b"other").hexdigest()
OTHER_512 = hashlib.sha512(b"other").hexdigest()
SIGNATURE = (
    "-----BEGIN PGP SIGNATURE-----\n\niQIzBAEBCAAdFiEEMexamplexamplexamplexamplex\n=abcd\n-----END PGP SIGNATURE-----\n"
)


def signed(text):
    return f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{text}{SIGNATURE}"


def bsd(name, digest):
    return f"# {name}: 300000 bytes\nSHA256 ({name}) = {digest}\n"


# Publisher: (folder, image, its checksum files). A text is a function of the name and the SHA-256 and SHA-512.
LAYOUTS = {
    "Debian": (
        "/images/cloud/bookworm/latest",
        "debian-12-genericcloud-amd64.raw",
        {"SHA512SUMS": lambda n, _a, b: f"{OTHER_512}  debian-12-generic-amd64.raw\n{b}  {n}\n"},
    ),
    "Ubuntu": (
        "/noble/current",
        "noble-server-cloudimg-amd64.img",
        {"SHA256SUMS": lambda n, a, _b: f"{OTHER} *noble-server-cloudimg-amd64.tar.gz\n{a} *{n}\n", "MD5SUMS": "x\n"},
    ),
    "Fedora": (
        "/pub/fedora/linux/releases/43/Cloud/x86_64/images",
        "Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2",
        {
            "Fedora-Cloud-43-1.6-x86_64-CHECKSUM": lambda n, a, _b: signed(
                bsd(n, a) + bsd("Fedora-Cloud-Base-UKI", OTHER)
            )
        },
    ),
    "Rocky Linux": (
        "/pub/rocky/9/images/x86_64",
        "Rocky-9-GenericCloud-Base.latest.x86_64.qcow2",
        {"Rocky-9-GenericCloud-Base.latest.x86_64.qcow2.CHECKSUM": lambda n, a, _b: bsd(n, a)},
    ),
    "AlmaLinux": (
        "/almalinux/9/cloud/x86_64/images",
        "AlmaLinux-9-GenericCloud-latest.x86_64.qcow2",
        {"CHECKSUM": lambda n, a, _b: signed(f"{OTHER}  AlmaLinux-9-OpenNebula-latest.x86_64.qcow2\n{a}  {n}\n")},
    ),
    "CentOS Stream": (
        "/9-stream/x86_64/images",
        "CentOS-Stream-GenericCloud-9-latest.x86_64.qcow2",
        {"CentOS-Stream-GenericCloud-9-latest.x86_64.qcow2.SHA256SUM": lambda n, a, _b: bsd(n, a)},
    ),
    "CentOS 7": ("/7/images", "CentOS-7-x86_64.qcow2", {"sha256sum.txt": lambda n, a, _b: f"{a}  {n}\n"}),
    "RHCOS mirror": ("/rhcos/4.14/latest", "rhcos.qcow2", {"sha256sum.txt": lambda n, a, _b: f"{a}  {n}\n"}),
    "openSUSE Leap": (
        "/distribution/leap/15.6/appliances",
        "openSUSE-Leap-15.6-Minimal-VM.x86_64-Cloud.qcow2",
        {
            "openSUSE-Leap-15.6-Minimal-VM.x86_64-Cloud.qcow2.sha256": (
                lambda _n, a, _b: f"{a}  openSUSE-Leap-15.6-Minimal-VM.x86_64-15.6.0-Cloud-Build13.327.qcow2\n"
            )
        },
    ),
    "Alpine": ("/v3.20/releases/cloud", "alpine.qcow2", {"alpine.qcow2.sha512": lambda n, _a, b: f"{b}  {n}\n"}),
    "Arch Linux": ("/images/latest", "Arch-Linux.qcow2", {"Arch-Linux.qcow2.SHA256": lambda n, a, _b: f"{a}  {n}\n"}),
    "FreeBSD": (
        "/pub/FreeBSD/releases/VM-IMAGES/14.3-RELEASE/amd64/Latest",
        "FreeBSD-14.3-RELEASE-amd64-BASIC-CLOUDINIT-zfs.raw",
        {
            "CHECKSUM.SHA256": lambda n, a, _b: (
                f"SHA256 (FreeBSD-14.3-RELEASE-amd64.raw) = {OTHER}\nSHA256 ({n}) = {a}\n"
            ),
            "CHECKSUM.SHA512": lambda n, _a, b: f"SHA512 ({n}) = {b}\n",
        },
    ),
    "Flatcar": (
        "/amd64-usr/current",
        "flatcar.img",
        {
            "flatcar.img.DIGESTS": (
                lambda n, _a, b: f"# MD5 HASH\n{'0' * 32}  {n}\n# SHA1 HASH\n{'1' * 40}  {n}\n# SHA512 HASH\n{b}  {n}\n"
            )
        },
    ),
    "Gentoo": (
        "/releases/amd64/autobuilds/current-di-amd64-cloudinit",
        "di-amd64-cloudinit.qcow2",
        {"di-amd64-cloudinit.qcow2.sha256": lambda n, a, _b: signed(f"# SHA256 HASH\n{a}  {n}\n")},
    ),
    "Gentoo's digests": (
        "/releases/amd64/autobuilds/current-di-amd64-cloudinit",
        "di.qcow2",
        {"di.qcow2.DIGESTS": lambda n, _a, b: signed(f"# BLAKE2B HASH\n{OTHER_512}  {n}\n# SHA512 HASH\n{b}  {n}\n")},
    ),
    "Amazon Linux": ("/al2023/os-images/kvm", "al2023.qcow2", {"SHA256SUMS": lambda n, a, _b: f"{a}  {n}\n"}),
    "OpenWrt": ("/releases/23.05.2/targets/x86/64", "openwrt.img", {"sha256sums": lambda n, a, _b: f"{a} *{n}\n"}),
}


@asynccontextmanager
async def publisher(folder, files):
    """Run a publisher's server and a service; yield a function that runs the job of an image's path."""
    async with raw_server(site(files)) as server:
        source = HttpSource(HttpSettings(urls=[server.url]), BackEndContext("http", folder))
        harness = Harness(folder, source=source)

        async def provision(path):
            spec = msgspec.structs.replace(SPEC, image_url=ImageUrl.parse(server.url + path), checksum=None)
            return await harness.run(spec)

        async with harness.running():
            yield provision
            assert harness.target.leftovers() == []
            harness.assert_cache_is_true()
        await source.aclose()


def files_of(who, *, digests_of=IMAGE, image=IMAGE):
    folder, name, texts = LAYOUTS[who]
    hashes = hashlib.sha256(digests_of).hexdigest(), hashlib.sha512(digests_of).hexdigest()
    files = {f"{folder}/{file}": text if isinstance(text, str) else text(name, *hashes) for file, text in texts.items()}
    return {f"{folder}/{name}": image, **files}, f"{folder}/{name}"


@pytest.mark.parametrize("who", LAYOUTS)
async def test_url_alone_is_enough(folder, who):
    files, path = files_of(who)
    async with publisher(folder, files) as provision:
        job = await provision(path)
        assert (job.status, job.error) == (Status.COMPLETED, None)


@pytest.mark.parametrize("what", ["image", "checksums"])
@pytest.mark.parametrize("who", LAYOUTS)
async def test_tampered_publication_is_refused(folder, who, what):
    """Nothing reaches a volume, and the error names the file that expected another image."""
    tampered = bytes([IMAGE[0] ^ 1]) + IMAGE[1:]
    files, path = files_of(who, **{"image" if what == "image" else "digests_of": tampered})
    async with publisher(folder, files) as provision:
        job = await provision(path)
        assert job.status is Status.FAILED
        assert "was expected by http://127.0.0.1" in job.error
        assert any(f"{file} " in f"{job.error} " or f"{file};" in job.error for file in files if file != path)


async def test_weak_checksum_is_not_enough(folder):
    """CirrOS publishes MD5 only; the error says so, what was tried, and the ways out."""
    files = {"/0.6.2/cirros.img": IMAGE, "/0.6.2/MD5SUMS": f"{hashlib.md5(IMAGE).hexdigest()}  cirros.img\n"}
    async with publisher(folder, files) as provision:
        job = await provision("/0.6.2/cirros.img")
        assert job.status is Status.FAILED
        for words in (
            "MD5SUMS: it has only the image's md5",
            "not found: cirros.img.sha256",
            "checksum_files",
            "request",
        ):
            assert words in job.error


@pytest.mark.parametrize(
    "missing",
    [
        says("400 Bad Request\nContent-Length: 0"),
        says("409 Conflict\nContent-Length: 0"),
        says("500 Oops\nContent-Length: 0"),
        says("302 Found\nLocation: /login\nContent-Length: 0"),
        says("302 Found\nLocation: http://elsewhere.invalid/404.html\nContent-Length: 0"),
        says("200 OK\nContent-Length: 24", b"<!doctype html>not here!"),
        says("200 OK\nContent-Length: 0"),
        says("200 OK\nContent-Encoding: br\nContent-Length: 3", b"abc"),
    ],
)
async def test_odd_answer_to_a_missing_file(folder, missing):
    """Only the answer to the file with the digest counts."""
    digest = hashlib.sha256(IMAGE).hexdigest()
    files = {"/disk.img": IMAGE, "/SHA256SUMS": f"{digest}  disk.img\n", "/login": "<html>please sign in</html>"}
    async with raw_server(site(files, missing)) as server:
        source = HttpSource(HttpSettings(urls=[server.url]), BackEndContext("http", folder))
        harness = Harness(folder, source=source)
        async with harness.running():
            spec = msgspec.structs.replace(SPEC, image_url=ImageUrl.parse(f"{server.url}/disk.img"), checksum=None)
            job = await harness.run(spec)
            assert (job.status, job.error) == (Status.COMPLETED, None)
        await source.aclose()
