"""Tests of the keys of token digests: rotation, credentials, file modes; and of comparison in constant time."""

from __future__ import annotations

import errno
import fcntl
import hmac
import json

import pytest

from provisioner.auth import tokens as module
from provisioner.auth.token_keys import KeyFile, key_id
from provisioner.auth.tokens import LAST_USE_GRAIN, TokenFile
from provisioner.config import Limits
from provisioner.contracts import SecretRef
from provisioner.contracts.errors import ConfigError, UnavailableError

NOW = 2e9


@pytest.fixture
def tokens(tmp_path):
    return TokenFile(tmp_path / "tokens.json")


def keys(tmp_path):
    return (tmp_path / "tokens.key").read_text().split()


def test_prepare_creates_key(tokens, tmp_path):
    tokens.prepare()
    (key,) = keys(tmp_path)
    assert len(bytes.fromhex(key)) == 32
    assert oct((tmp_path / "tokens.key").stat().st_mode & 0o777) == "0o600"
    tokens.prepare()
    assert keys(tmp_path) == [key]


def test_prepare_with_readable_key(tokens, tmp_path):
    tokens.prepare()
    (tmp_path / "tokens.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        tokens.prepare()


def test_rotation_moves_used_tokens(tokens, tmp_path):
    used, unused = tokens.create("used", "viewer"), tokens.create("unused", "viewer")
    (old,) = keys(tmp_path)
    assert TokenFile(tmp_path / "tokens.json").rotate_key() == ("used", "unused")
    assert keys(tmp_path)[1:] == [old]
    assert tokens.authenticate(used, NOW).name == "used"
    tokens.settle()
    assert keys(tmp_path)[1:] == [old]  # the other token still needs it
    assert tokens.authenticate(used, NOW).name == "used"
    assert tokens.authenticate(unused, NOW).name == "unused"
    tokens.settle()
    assert old not in keys(tmp_path)
    assert [tokens.authenticate(token, NOW).name for token in (used, unused)] == ["used", "unused"]
    assert {record.key for record in tokens.list()} == {key_id(bytes.fromhex(keys(tmp_path)[0]))}


def test_two_rotations_keep_tokens(tokens, tmp_path):
    token = tokens.create("a", "viewer")
    for _ in range(2):
        tokens.rotate_key()
    assert tokens.authenticate(token, NOW).name == "a"
    assert len(keys(tmp_path)) == 2  # no token uses the key of the first rotation
    tokens.settle()
    assert len(keys(tmp_path)) == 1
    assert tokens.authenticate(token, NOW).name == "a"


def test_revoke_removes_unused_key(tokens, tmp_path):
    tokens.create("a", "viewer")
    tokens.rotate_key()
    tokens.revoke("a")
    assert len(keys(tmp_path)) == 1


def test_rotation_with_forget(tokens, tmp_path):
    token = tokens.create("a", "viewer")
    assert tokens.authenticate(token, NOW) is not None
    assert TokenFile(tmp_path / "tokens.json").rotate_key(forget=True) == ("a",)
    assert tokens.authenticate(token, NOW) is None
    assert len(keys(tmp_path)) == 1
    assert tokens.list() == []


def test_settle_skips_replaced_token(tokens, tmp_path):
    old = tokens.create("a", "viewer")
    tokens.rotate_key()
    tokens.authenticate(old, NOW)
    other = TokenFile(tmp_path / "tokens.json")
    other.revoke("a")
    new = other.create("a", "admin")
    tokens.settle()
    assert tokens.authenticate(old, NOW) is None
    assert tokens.authenticate(new, NOW).role == "admin"


def test_settle_skips_revoked_token(tokens, tmp_path):
    token = tokens.create("a", "viewer")
    tokens.authenticate(token, NOW)
    TokenFile(tmp_path / "tokens.json").revoke("a")
    tokens.settle()
    assert tokens.list() == []


def test_file_without_key_ids(tokens, tmp_path):
    token = tokens.create("a", "viewer")
    file = tmp_path / "tokens.json"
    content = json.loads(file.read_text())
    del content["tokens"][0]["key"]
    file.write_text(json.dumps(content))
    assert tokens.authenticate(token, NOW).name == "a"
    tokens.rotate_key()
    assert tokens.authenticate(token, NOW).name == "a"
    tokens.settle()
    assert len(keys(tmp_path)) == 1
    assert tokens.authenticate(token, NOW).name == "a"


def test_last_use_is_written_rarely(tokens, tmp_path):
    token = tokens.create("a", "viewer")
    file = tmp_path / "tokens.json"
    tokens.authenticate(token, NOW)
    before = file.stat().st_ino
    for second in range(100):
        tokens.authenticate(token, NOW + second)
    assert file.stat().st_ino == before
    tokens.settle()
    (record,) = tokens.list()
    assert record.last_used_at == NOW + 99
    tokens.authenticate(token, NOW + 100)
    before = file.stat().st_ino
    tokens.settle()
    assert file.stat().st_ino == before  # the stored time is recent enough
    tokens.authenticate(token, NOW + 100 + LAST_USE_GRAIN)
    tokens.settle()
    assert tokens.list()[0].last_used_at == NOW + 100 + LAST_USE_GRAIN


def test_last_use_ignores_invalid_token(tokens):
    token = tokens.create("a", "viewer", NOW)
    tokens.authenticate(token, NOW)
    tokens.authenticate("lvp_wrong", NOW)
    tokens.settle()
    assert tokens.list()[0].last_used_at is None


def fails_once(monkeypatch, name, error):
    """Make ``name`` of the module fail at its next call."""
    real = getattr(module, name)

    def failing(*arguments):
        monkeypatch.setattr(module, name, real)
        raise error

    monkeypatch.setattr(module, name, failing)


def test_settle_with_a_full_disk(tokens, tmp_path, monkeypatch):
    """Times of use and new digests that cannot be written are written at the next attempt."""
    token = tokens.create("a", "viewer")
    tokens.rotate_key()
    tokens.authenticate(token, NOW)
    fails_once(monkeypatch, "write_private", OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        tokens.settle()
    assert len(keys(tmp_path)) == 2
    tokens.settle()
    (record,) = tokens.list()
    assert record.last_used_at == NOW
    assert keys(tmp_path) == [keys(tmp_path)[0]]
    assert record.key == key_id(bytes.fromhex(keys(tmp_path)[0]))
    assert tokens.authenticate(token, NOW).name == "a"


def test_settle_keeps_a_use_during_the_write(tokens, monkeypatch):
    token, real = tokens.create("a", "viewer"), module.write_private
    tokens.authenticate(token, NOW)

    def used_meanwhile(*arguments):
        tokens.authenticate(token, NOW + LAST_USE_GRAIN)
        real(*arguments)

    monkeypatch.setattr(module, "write_private", used_meanwhile)
    tokens.settle()
    monkeypatch.setattr(module, "write_private", real)
    tokens.authenticate("lvp_wrong", NOW)
    tokens.settle()
    assert tokens.list()[0].last_used_at == NOW + LAST_USE_GRAIN


@pytest.fixture
def stopped_command(tokens, tmp_path):
    """Hold the lock of the token file, as another program."""
    with (tmp_path / "tokens.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def test_settle_while_the_file_is_locked(tokens, tmp_path, monkeypatch, request):
    monkeypatch.setattr(module, "SETTLE_LOCK_TIMEOUT", 0.0)
    token = tokens.create("a", "viewer")
    tokens.authenticate(token, NOW)
    lock = request.getfixturevalue("stopped_command")
    with pytest.raises(UnavailableError, match="locked by another program"):
        tokens.settle()
    assert tokens.authenticate(token, NOW).name == "a"
    lock.close()
    tokens.settle()
    assert tokens.list()[0].last_used_at == NOW


@pytest.mark.parametrize("command", [lambda t: t.create("b", "viewer"), lambda t: t.revoke("a"), TokenFile.rotate_key])
def test_commands_while_the_file_is_locked(tokens, stopped_command, monkeypatch, command):
    monkeypatch.setattr(module, "LOCK_TIMEOUT", 0.0)
    with pytest.raises(UnavailableError, match=r"tokens\.lock"):
        command(tokens)


def test_commands_with_lock_released_in_time(tokens, stopped_command, monkeypatch):
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        stopped_command.close()

    monkeypatch.setattr(module.time, "sleep", pause)
    tokens.create("b", "viewer")
    assert len(pauses) == 1


def test_limits_are_stored(tokens):
    limits = Limits(volumes=["ci-*"], targets=["fast"], sources=["https://x/"], max_jobs=3)
    token = tokens.create("a", "operator", limits=limits)
    assert tokens.authenticate(token, NOW).limits == limits


def test_key_from_credential(tmp_path, monkeypatch):
    """The key comes from outside and is read-only; a rotation is a second line."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    old, new = "11" * 32, "22" * 32
    (folder / "token-key").write_text(old + "\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))

    def opened():
        return TokenFile(tmp_path / "tokens.json", KeyFile(None, SecretRef.parse("credential:token-key")))

    opened().prepare()
    token = opened().create("a", "viewer")
    assert not (tmp_path / "tokens.key").exists()
    with pytest.raises(ConfigError, match="provided from outside"):
        opened().rotate_key()
    (folder / "token-key").write_text(f"{new}\n{old}\n")
    daemon = opened()
    assert daemon.authenticate(token, NOW).name == "a"
    daemon.settle()
    (folder / "token-key").write_text(f"{new}\n")
    assert opened().authenticate(token, NOW).name == "a"
    (folder / "token-key").write_text(f"{old}\n")
    assert opened().authenticate(token, NOW) is None


@pytest.mark.parametrize("content", ["", "abc", "11" * 31, "zz" * 32, "11" * 32 + "\nx"])
def test_key_from_invalid_credential(tmp_path, monkeypatch, content):
    (tmp_path / "k").write_text(content)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigError, match="64 hex digits"):
        TokenFile(tmp_path / "t.json", KeyFile(None, SecretRef.parse("credential:k"))).prepare()


def test_key_from_missing_credential(tmp_path, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    store = TokenFile(tmp_path / "t.json", KeyFile(None, SecretRef.parse("credential:k")))
    with pytest.raises(ConfigError, match="--key-file"):
        store.create("a", "viewer")
    assert not (tmp_path / "t.json").exists()


def test_key_in_other_file(tmp_path):
    place = tmp_path / "elsewhere.key"
    store = TokenFile(tmp_path / "t.json", KeyFile(tmp_path / "t.key", SecretRef.parse(f"file:{place}")))
    token = store.create("a", "viewer")
    assert place.exists()
    assert not (tmp_path / "t.key").exists()
    assert store.authenticate(token, NOW).name == "a"


@pytest.mark.parametrize("right", [0, 1, 20, 46])
def test_authenticate_in_constant_time(tokens, monkeypatch, right):
    """However much of a token is right, its HMAC is compared with every digest by ``compare_digest``."""
    names = ["a", "b", "c"]
    made = {name: tokens.create(name, "viewer") for name in names}
    compared = []

    def noted(one, other):
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(module, "hmac", type("hmac", (), {"digest": hmac.digest, "compare_digest": noted}))
    shown = made["b"][:right] + "x" * (47 - right)
    assert tokens.authenticate(shown, NOW) is None
    assert [one for one, _ in compared] == [record.digest for record in tokens.list()]
    assert {len(text) for pair in compared for text in pair} == {64}
    compared.clear()
    assert tokens.authenticate(made["a"], NOW).name == "a"
    assert len(compared) == 3  # a match does not end the comparison
