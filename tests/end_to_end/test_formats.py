"""Disk images as other tools make them, without a size: the volume is what qemu-img reads from the image."""

import gzip

import pytest

from tests.end_to_end.conftest import MIB, qemu_img, vouch
from tests.hostile.forge import tar_of, zip_of

pytestmark = pytest.mark.slow

FORMATS = {
    "vmdk-sparse": ("vmdk", ["-O", "vmdk", "-o", "subformat=monolithicSparse"]),
    "vmdk-stream": ("vmdk", ["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    "vhdx-dynamic": ("vhdx", ["-O", "vhdx"]),
    "vhdx-fixed": ("vhdx", ["-O", "vhdx", "-o", "subformat=fixed"]),
    "vhd-dynamic": ("vpc", ["-O", "vpc", "-o", "force_size=on"]),
    "vhd-dynamic-geometry": ("vpc", ["-O", "vpc"]),
    "vhd-fixed": ("vpc", ["-O", "vpc", "-o", "subformat=fixed,force_size=on"]),
    "vhd-fixed-geometry": ("vpc", ["-O", "vpc", "-o", "subformat=fixed"]),
    "vhd-fixed-as-raw": ("raw", ["-O", "vpc", "-o", "subformat=fixed,force_size=on"]),
    "vdi": ("vdi", ["-O", "vdi"]),
    "qcow2-old": ("qcow2", ["-O", "qcow2", "-o", "compat=0.10"]),
    "qcow2-small-clusters": ("qcow2", ["-O", "qcow2", "-o", "cluster_size=512"]),
    "qcow2-large-clusters": ("qcow2", ["-O", "qcow2", "-o", "cluster_size=2M", "-c"]),
    "qcow2-preallocated": ("qcow2", ["-O", "qcow2", "-o", "preallocation=metadata"]),
    "qcow2-narrow-refcounts": ("qcow2", ["-O", "qcow2", "-o", "refcount_bits=1"]),
    "qcow2-lazy-refcounts": ("qcow2", ["-O", "qcow2", "-o", "lazy_refcounts=on"]),
}  # fmt: skip


def as_ova(data):
    """Return an appliance as OVF tools write it: description, disk, manifest."""
    return tar_of(
        {"vm.ovf": b"<?xml version='1.0'?>\n<Envelope/>\n", "vm-disk1.vmdk": data, "vm.mf": b"SHA256(x)= 0\n"}
    )


# Appliances, and Azure's images.
PACKED = [("vmdk-sparse", ".ova"), ("vmdk-stream", ".ova"), ("vhd-fixed", ".zip"), ("vhd-fixed-as-raw", ".gz")]
PACKINGS = {
    "": lambda data: data,
    ".ova": as_ova,
    ".zip": lambda data: zip_of({"images/disk": data}),
    ".gz": lambda data: gzip.compress(data, 1),
}


@pytest.fixture(scope="module")
def published(images, tmp_path_factory):
    """Return a function that publishes an image of a form; it returns the file's name, and the true disk."""
    source, made = images["sparse.raw"].raw, {}

    def publish(form, packing):
        name = f"{form}{packing}"
        if name not in made:
            kind, options = FORMATS[form]
            folder = tmp_path_factory.mktemp("formats")
            qemu_img("convert", "-f", "raw", *options, source, folder / "image")
            # QEMU itself takes the footer of a fixed VHD for data if it is told that the file is raw.
            reader = "driver=vpc,force_size_calc=current_size,file.filename=" if "vhd-" in form else None
            where = ["--image-opts", f"{reader}{folder}/image"] if reader else ["-f", kind, folder / "image"]
            qemu_img("convert", *where, "-O", "raw", folder / "disk")
            source.with_name(name).write_bytes(PACKINGS[packing]((folder / "image").read_bytes()))
            vouch(source.with_name(name))
            made[name] = folder / "disk"
        return name, made[name]

    return publish


@pytest.mark.parametrize("converter", ["native", "qemu-img"])
def test_image_formats(make_daemon, server, published, converter):
    """One daemon for all, because each start takes seconds."""
    others = dict.fromkeys(("vmdk", "vhdx", "vpc", "vdi"), "qemu-img")
    daemon = make_daemon(converters={"qcow2": converter, "raw": converter, **others}).start()
    # The other formats have one converter only.
    cases = [(form, "") for form, (kind, _) in FORMATS.items() if converter == "native" or kind in {"raw", "qcow2"}]
    cases += PACKED if converter == "native" else []
    for number, (form, packing) in enumerate(cases):
        name, disk = published(form, packing)
        job_id = daemon.submit(server.of(name), f"v{number}", FORMATS[form][0], volume_size_gb=None)
        job = daemon.job_ended(job_id)
        assert job["status"] == "completed", (form, packing, job)
        assert job["volume"]["size_bytes"] == 2**30
        assert_begins_with(daemon.volume(f"v{number}"), disk)
        daemon.volume(f"v{number}").unlink()


def assert_begins_with(volume, disk):
    """Compare the volume with the disk and zeros after it."""
    wanted = disk.read_bytes()
    with volume.open("rb") as file:
        assert file.read(len(wanted)) == wanted
        assert not any(file.read(MIB))
