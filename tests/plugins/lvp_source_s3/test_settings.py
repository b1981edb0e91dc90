import msgspec
import pytest

from lvp_source_s3 import MinioSettings, S3Settings, lvp_image_sources

REF = "file:/etc/lvp/key"


def decode(kind, **table):
    return msgspec.convert(table, kind, dec_hook=lambda wanted, value: wanted.parse(value))


def test_plugin_registers_both_back_ends():
    assert [back_end.name for back_end in lvp_image_sources()] == ["s3", "minio"]
    assert decode(S3Settings).addressing == "auto"
    assert decode(MinioSettings, endpoint="https://minio.example.com:9000").addressing == "path"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"endpoint": "minio.example.com"}, "endpoint must be"),
        ({"endpoint": "https://minio.example.com/path"}, "without a path"),
        ({"endpoint": "https://key:secret@minio.example.com"}, "endpoint must be"),
        ({"endpoint": "https://minio.example.com", "dual_stack": True}, "dual_stack"),
        ({"region": "EU Central"}, "region"),
        ({"buckets": ["Upper"]}, "'Upper' must be a bucket name"),
        ({"access_key": REF}, "must be set together"),
        ({"session_token": REF}, "session_token needs"),
        ({"access_key": REF, "secret_key": REF, "credentials": "file"}, "not both"),
        ({"profile": "lab", "credentials": "environment"}, "profile need"),
        ({"credentials": "magic"}, "magic"),
        ({"credentials": "anonymous", "requester_pays": True}, "requester_pays needs credentials"),
        ({"access_key": "AKIAINLINE", "secret_key": REF}, "never the secret itself"),
        ({"bucket": "x"}, "bucket"),
        ({"rate_limit": 1}, "at least 1KiB"),
    ],
)
def test_invalid_settings(table, words):
    with pytest.raises(msgspec.ValidationError, match=words):
        decode(S3Settings, **table)


def test_minio_needs_endpoint():
    with pytest.raises(msgspec.ValidationError, match="endpoint"):
        decode(MinioSettings)
