"""The id of an installation, and the lock that keeps two installations apart."""

import errno
import fcntl
import os
import threading

import pytest

from provisioner.contracts.errors import TargetUnavailableError
from provisioner.contracts.ownership import ID_FILE, PlaceLock, installation_id, known_id


def a_lock(tmp_path, state, **options):
    return PlaceLock(tmp_path / "locks" / "vg0", "the volume group vg0", tmp_path / state, **options)


def test_installation_id_created_once(tmp_path):
    state = tmp_path / "state"
    assert known_id(state) is None
    assert not state.exists()
    made = installation_id(state)
    assert [made, made] == [installation_id(state), known_id(state)]
    assert len(made) == 12
    assert [path.name for path in state.iterdir()] == [ID_FILE]
    assert installation_id(tmp_path / "other") != made


def test_installation_id_created_concurrently(tmp_path):
    found, barrier = [], threading.Barrier(8)

    def make():
        barrier.wait()
        found.append(installation_id(tmp_path))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"0123", b"x" * 5000])
def test_installation_id_damaged(tmp_path, damage):
    (tmp_path / ID_FILE).write_bytes(damage)
    with pytest.raises(TargetUnavailableError, match="take-over"):
        installation_id(tmp_path)
    assert known_id(tmp_path) is None
    assert (tmp_path / ID_FILE).read_bytes() == damage


def test_place_lock_held_by_other_installation(tmp_path):
    first, second = a_lock(tmp_path, "one"), a_lock(tmp_path, "two")
    assert first.take() == first.take() == known_id(tmp_path / "one")
    with pytest.raises(TargetUnavailableError, match=rf"vg0 is in use by .*process {os.getpid()} on "):
        second.take()
    assert f"process {os.getpid()}" in second.held_by_other()
    assert first.held_by_other() is None
    first.release()
    assert second.held_by_other() is None
    second.take()


def test_held_by_other_does_not_lock(tmp_path):
    """A query by ``lvp doctor`` must not make a daemon's start fail."""
    first = a_lock(tmp_path, "one")
    first.take()
    first.release()
    asked = []
    fcntl_before = fcntl.fcntl

    def taken_meanwhile(fd, command, *args):
        asked.append(a_lock(tmp_path, "three").take())
        return fcntl_before(fd, command, *args)

    second = a_lock(tmp_path, "two")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fcntl, "fcntl", lambda fd, *args: (patched.undo(), taken_meanwhile(fd, *args))[1])
        second.held_by_other()
    assert asked


def test_place_lock_shared(tmp_path):
    one, two = a_lock(tmp_path, "one", shared=True), a_lock(tmp_path, "two", shared=True)
    assert one.take() != two.take()
    with pytest.raises(TargetUnavailableError, match="shared = true"):
        a_lock(tmp_path, "three").take()
    one.release()
    two.release()
    three = a_lock(tmp_path, "three")
    three.take()
    with pytest.raises(TargetUnavailableError, match="another installation"):
        one.take()


def test_place_lock_file_removed(tmp_path, monkeypatch):
    """If the file is removed between open and lock, the lock would be ineffective: create it again."""
    set_lock, removed = fcntl.fcntl, []

    def remove_first(fd, command, *args):
        if command == fcntl.F_OFD_SETLK and not removed:
            removed.append((tmp_path / "locks" / "vg0").unlink())
        return set_lock(fd, command, *args)

    monkeypatch.setattr(fcntl, "fcntl", remove_first)
    first = a_lock(tmp_path, "one")
    first.take()
    assert removed
    with pytest.raises(TargetUnavailableError, match="another installation"):
        a_lock(tmp_path, "two").take()


def test_place_lock_without_lock_support(tmp_path, monkeypatch):
    def refuse(fd, command, *args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    lock = a_lock(tmp_path, "one")
    assert lock.take() == known_id(tmp_path / "one")


def test_place_lock_not_creatable(tmp_path):
    (tmp_path / "locks").write_text("not a folder")
    with pytest.raises(TargetUnavailableError, match=r"the lock .* cannot be used"):
        a_lock(tmp_path, "one").take()
