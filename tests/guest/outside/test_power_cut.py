"""A guest survives having its plug pulled: what was on its disks is there after the next boot."""

from tests.guest.harness import Guest


def test_a_volume_made_before_the_cut_is_there_after_it(guest: Guest) -> None:
    """LVM's metadata, the volume's synced bytes and a synced file of the root file system survive."""
    guest.sh(
        "vgcreate -y cut /dev/disk/by-id/virtio-plain; lvcreate -y -L 64M -n kept cut;"
        "echo written | dd of=/dev/cut/kept conv=fsync status=none; echo noted > /root/note; sync /root/note"
    )
    guest.power_cut()
    guest.boot()
    assert guest.sh("lvs --noheadings -o lv_name cut").split() == ["kept"]
    assert guest.sh("head -c 8 /dev/cut/kept; cat /root/note").split() == ["written", "noted"]


def test_files_and_statuses_come_back(guest: Guest) -> None:
    """put, get, run and start do what they say."""
    guest.put(b"x" * 3_000_000, "/root/deep/file", mode=0o755)
    assert guest.get("/root/deep/file") == b"x" * 3_000_000
    done = guest.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.status, sorted(done.output.split())) == (7, ["err", "out"])
    process = guest.start(["sleep", "1000"], "/root/log")
    assert guest.sh(f"cat /proc/{process}/cmdline").split("\0") == ["sleep", "1000", ""]
