import json

import pytest
import trio

from lvp_source_s3 import MinioSettings, S3Settings
from lvp_source_s3.credentials import Keys
from provisioner.contracts import SecretRef
from provisioner.contracts.errors import SourceError
from tests.servers.raw import raw_server, says


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def minio(**settings):
    return Keys(MinioSettings(endpoint="https://minio.example.com", **settings), "lab")


def shown(keys):
    found = keys.get()
    return found.access_key, found.secret_key, found.session_token


def test_references_are_read_every_time(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("one\n")
    monkeypatch.setenv("LAB_KEY", "key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "token").write_text("token")
    keys = minio(
        access_key=SecretRef("env:LAB_KEY"),
        secret_key=SecretRef(f"file:{tmp_path}/secret"),
        session_token=SecretRef("credential:token"),
    )
    assert shown(keys) == ("key", "one", "token")
    (tmp_path / "secret").write_text("two")
    assert shown(keys) == ("key", "two", "token")


def test_environment_own_variables_first(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "amazon")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t")
    assert shown(minio()) == ("amazon", "a", "t")
    monkeypatch.setenv("MINIO_ACCESS_KEY", "minio")
    monkeypatch.setenv("MINIO_SECRET_KEY", "m")
    assert shown(minio()) == ("minio", "m", None)
    assert shown(Keys(S3Settings(), "lab")) == ("amazon", "a", "t")


def test_credentials_file_profile(tmp_path):
    path = tmp_path / "credentials"
    path.write_text(
        "[default]\naws_access_key_id=d\naws_secret_access_key=x\n[lab]\naws_access_key_id=l\naws_secret_access_key=y"
    )
    assert shown(minio(credentials="file", credentials_file=str(path))) == ("d", "x", None)
    assert shown(minio(credentials_file=str(path), profile="lab")) == ("l", "y", None)


def test_malformed_file_is_not_quoted(tmp_path):
    path = tmp_path / "credentials"
    path.write_text("aws_secret_access_key = hunter2")
    with pytest.raises(SourceError, match="no usable credentials for source lab") as caught:
        minio(credentials="file", credentials_file=str(path)).get()
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert str(path) in caught.value.message


def test_missing_credentials_lists_places():
    with pytest.raises(SourceError, match=r"MINIO_\* variables, AWS_\* variables, shared credentials file") as caught:
        minio().get()
    assert not caught.value.temporary


def test_anonymous_source_has_no_keys():
    assert minio(credentials="anonymous").get() is None


async def test_instance_role_is_cached(monkeypatch):
    answer = {"AccessKeyId": "role", "SecretAccessKey": "s", "Token": "t", "Expiration": "2999-01-01T00:00:00Z"}
    body = json.dumps(answer).encode()
    async with raw_server(says(f"200 OK\nContent-Length: {len(body)}", body)) as metadata:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{metadata.url}/role")
        keys = Keys(S3Settings(), "lab")
        for _ in range(2):
            assert await trio.to_thread.run_sync(shown, keys) == ("role", "s", "t")
        assert len(metadata.requests) == 1


async def test_error_hides_the_token(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("hunter2")
    async with raw_server(says("400 No\nContent-Length: 0")) as sts:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{sts.url}/role")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "hunter2")
        keys = Keys(S3Settings(credentials="instance"), "lab")
        with pytest.raises(SourceError) as caught:
            await trio.to_thread.run_sync(keys.get)
        error = caught.value
        assert error.__cause__ is None
        assert error.__suppress_context__
        assert "hunter2" not in f"{error!r}"
