"""The disks of a guest survive a power cut."""

from tests.guest.harness import Guest


def test_a_volume_survives_a_power_cut(guest: Guest) -> None:
    """LVM's metadata, synced data of the volume and a synced file of the root file system survive."""
    guest.sh(
        "vgcreate -y cut /dev/disk/by-id/virtio-plain; lvcreate -y -L 64M -n kept cut;"
        "echo written | dd of=/dev/cut/kept conv=fsync status=none; echo noted > /root/note; sync /root/note"
    )
    guest.power_cut()
    guest.boot()
    assert guest.sh("lvs --noheadings -o lv_name cut").split() == ["kept"]
    assert guest.sh("head -c 8 /dev/cut/kept; cat /root/note").split() == ["written", "noted"]


def test_put_get_run_and_start(guest: Guest) -> None:
    """They transfer files, and return statuses, output and a process id."""
    guest.put(b"x" * 3_000_000, "/root/deep/file", mode=0o755)
    assert guest.get("/root/deep/file") == b"x" * 3_000_000
    done = guest.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.status, sorted(done.output.split())) == (7, ["err", "out"])
    process = guest.start(["sleep", "1000"], "/root/log")
    assert guest.sh(f"cat /proc/{process}/cmdline").split("\0") == ["sleep", "1000", ""]
