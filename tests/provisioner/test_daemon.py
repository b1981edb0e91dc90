"""The composition root's own decisions; the whole of it runs in tests/end_to_end."""

from __future__ import annotations

import fcntl
from types import SimpleNamespace

import msgspec
import pytest
import trio

from provisioner import daemon
from provisioner.auth.tokens import TokenFile
from provisioner.config import NamedImage, SignatureSettings, embedded
from provisioner.contracts import AbsolutePath
from provisioner.contracts.errors import ConfigError, UnavailableError
from provisioner.images import ImageResolver


@pytest.fixture
def config(tmp_path):
    return embedded(tmp_path / "data", "127.0.0.1:0")


async def test_named_image_to_prewarm(tmp_path):
    """It has what its name demands, and what the name stands for is pinned."""
    signature = SignatureSettings(kind="minisign", public_key=AbsolutePath("/etc/key.pub"))
    url = "https://images.example/debian.raw"
    images = {"debian": NamedImage(url=url, image_type="raw", signature=signature)}
    pinned = []
    services = SimpleNamespace(
        images=ImageResolver(images, lambda _url: None, list),
        cache=SimpleNamespace(resolved=lambda *what: pinned.append(what)),
    )
    spec = await daemon._named(services, "debian")
    assert (spec.image_url.text, spec.image_format, spec.signature, spec.volume_name) == (url, "raw", signature, None)
    assert pinned == [("debian", url, None)]


def leave(config):
    tokens = TokenFile(daemon.Path(config.token_file))
    daemon._leave_client_token(config, tokens)
    return tokens


def test_client_token_at_first_start(config, tmp_path):
    (tmp_path / "data").mkdir()
    tokens = leave(config)
    file = tmp_path / "data" / "client-token"
    assert oct(file.stat().st_mode & 0o777) == "0o600"
    record = tokens.authenticate(file.read_text().strip(), 0)
    assert (record.name, record.role) == ("client", "operator")


def test_client_token_at_later_starts(config, tmp_path):
    (tmp_path / "data").mkdir()
    leave(config)
    token = (tmp_path / "data" / "client-token").read_text()
    leave(config)
    assert (tmp_path / "data" / "client-token").read_text() == token


def test_client_token_replaced_when_lost(config, tmp_path):
    (tmp_path / "data").mkdir()
    leave(config)
    file = tmp_path / "data" / "client-token"
    lost = file.read_text().strip()
    file.unlink()
    tokens = leave(config)
    assert tokens.authenticate(lost, 0) is None
    assert tokens.authenticate(file.read_text().strip(), 0).name == "client"


def test_client_token_with_locked_file(config, tmp_path, monkeypatch):
    """The client token is made at the next start."""
    monkeypatch.setattr("provisioner.auth.tokens.LOCK_TIMEOUT", 0.0)
    (tmp_path / "data").mkdir()
    lock_file = daemon.Path(config.token_file).with_suffix(".lock")
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        leave(config)
        assert not (tmp_path / "data" / "client-token").exists()
    leave(config)
    assert (tmp_path / "data" / "client-token").exists()


async def test_close_continues_after_failure(autojump_clock):
    """Each part has a deadline of its own, and its failure is logged."""
    closed = []

    async def hangs():
        await trio.sleep_forever()

    async def breaks():
        raise RuntimeError("a plugin's bug")

    async def closes():
        await trio.lowlevel.checkpoint()
        closed.append(1)

    with trio.CancelScope() as scope:
        scope.cancel()
        for close in (hangs, breaks, closes):
            await daemon._close("part", close)
    assert closed == [1]


def test_run_with_unwritable_directory(tmp_path):
    config = embedded(tmp_path / "data", "127.0.0.1:0")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "client-token").symlink_to("/nonexistent/x")
    with pytest.raises(ConfigError, match="client-token"):
        leave(config)


@pytest.mark.parametrize(
    ("error", "traceback"),
    [
        (UnavailableError("the store is gone"), False),
        (ExceptionGroup("", [ExceptionGroup("", [OSError(98, "in use")])]), False),
        (ExceptionGroup("", [RuntimeError("a bug")]), True),
    ],
)
def test_report_traceback_only_for_bugs(error, traceback, monkeypatch):
    said = []
    monkeypatch.setattr(daemon, "log", type("Log", (), {"critical": lambda *args, **more: said.append(more)}))
    assert daemon._report(error) == 1
    assert ("exc_info" in said[0]) == traceback


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_where_to_sign_in(config, tmp_path, capsys, log_format):
    """People are told at each start; a JSON log has nothing but JSON."""
    (tmp_path / "data").mkdir()
    leave(config)
    file = tmp_path / "data" / "client-token"
    log = msgspec.structs.replace(config.log, format=log_format)
    daemon._say_where_to_sign_in(msgspec.structs.replace(config, log=log), ["unix:/run/x", "http://127.0.0.1:8080"])
    said = capsys.readouterr().err
    assert said.count(str(file)) == (2 if log_format == "text" else 0)
    assert file.read_text().strip() not in said
