import msgspec
import pytest

from lvp_source_http import HttpSettings, lvp_image_sources
from provisioner.contracts import ByteSize, Duration, SecretRef

SECRET = "file:/etc/lvp/secret"


def decode(**table):
    def hook(kind, value):
        return kind.parse(value)

    return msgspec.convert({"urls": ["https://images.example.com/pub/"], **table}, HttpSettings, dec_hook=hook)


def test_settings_are_typed():
    settings = decode(
        stall_timeout="1m",
        rate_limit="10MiB",
        headers={"X-Key": SECRET},
        username="lab",
        password=SECRET,
        trust_env=True,
    )
    assert settings.stall_timeout == Duration(60)
    assert settings.rate_limit == ByteSize(10 * 1024**2)
    assert settings.headers == {"X-Key": SecretRef(SECRET)}
    assert settings.options().trust_env
    assert decode(allow_addresses=["127.0.0.0/8", "::1"]).options().allow_addresses == ("127.0.0.0/8", "::1")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"urls": []}, "at least one prefix"),
        ({"urls": ["s3://bucket/"]}, "'s3://bucket/' is not a prefix"),
        ({"urls": ["https://user:pass@images.example.com/"]}, "is not a prefix"),
        ({"mirrors": ["ftp://x/"]}, "'ftp://x/' is not a prefix"),
        ({"urls": ["https://*.example.com/"], "mirrors": ["https://m.example.com/"]}, "exactly one entry"),
        ({"client_key": "/k"}, "needs client_certificate"),
        ({"username": "lab"}, "must be set together"),
        ({"username": "a:b", "password": SECRET}, "colon"),
        ({"username": "lab", "password": SECRET, "bearer_token": SECRET}, "not both"),
        ({"headers": {"X Key": SECRET}}, "invalid header name"),
        ({"headers": {"authorization": SECRET}, "bearer_token": SECRET}, "twice"),
        ({"headers": {"Range": SECRET}}, "must not set any of .*range"),
        ({"proxy": "http://user:pass@proxy:3128"}, "without a user name"),
        ({"proxy": "http://proxy:3128", "trust_env": True}, "must not both be set"),
        ({"proxy_username": "x"}, "must be set together"),
        ({"connections": 0}, "1 to 1000"),
        ({"stall_timeout": 0}, "over 0"),
        ({"rate_limit": 10}, "at least 1KiB"),
        ({"allow_addresses": ["127.0.0.1/8"]}, "host bits"),
        ({"allow_addresses": ["localhost"]}, "networks such as"),
        ({"no_such_key": 1}, "no_such_key"),
    ],
)
def test_invalid_settings(table, words):
    with pytest.raises(msgspec.ValidationError, match=words):
        decode(**table)


def test_plugin_registers_one_back_end():
    (back_end,) = lvp_image_sources()
    assert back_end.name == "http"
