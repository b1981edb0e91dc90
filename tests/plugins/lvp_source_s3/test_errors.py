import pytest

from lvp_source_s3.errors import meaning
from provisioner.contracts.errors import RemoteDeniedError, RemoteNotFoundError, RemoteUnavailableError, SourceError


def xml(code, more=""):
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>m</Message>{more}</Error>'.encode()


def read(body, status=403, headers=None, *, anonymous=False):
    return meaning(status, headers or {}, body, "https://s3/images/disk", "lab", anonymous=anonymous)


@pytest.mark.parametrize(
    ("code", "kind", "temporary", "words"),
    [
        ("NoSuchKey", RemoteNotFoundError, False, "no such object"),
        ("NoSuchBucket", RemoteNotFoundError, False, "no such bucket"),
        ("AccessDenied", RemoteDeniedError, False, "may not read it"),
        ("InvalidAccessKeyId", RemoteDeniedError, False, "access key of source lab"),
        ("SignatureDoesNotMatch", RemoteDeniedError, False, "secret key of source lab"),
        ("ExpiredToken", RemoteDeniedError, False, "has expired"),
        ("RequestTimeTooSkewed", RemoteDeniedError, False, "clocks"),
        ("InvalidObjectState", SourceError, False, "restored"),
        ("SlowDown", RemoteUnavailableError, True, "slow down"),
        ("InternalError", RemoteUnavailableError, True, "internal error"),
    ],
)
def test_meaning_of_error_code(code, kind, temporary, words):
    error = read(xml(code))
    assert type(error) is kind
    assert error.temporary is temporary
    assert words in error.message
    assert code in error.message


def test_meaning_anonymous_caller():
    assert "without credentials" in read(xml("AccessDenied"), anonymous=True).message


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (xml("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"), {}),
        (xml("PermanentRedirect", "<Endpoint>x</Endpoint>"), {"x-amz-bucket-region": "eu-west-1"}),
    ],
)
def test_meaning_wrong_region(body, headers):
    error = read(body, 400, headers)
    assert 'set region = "eu-west-1" for source lab' in error.message
    assert not error.temporary


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", xml("SomethingNew"), b"<Code>" + b"A" * 10_000, b"\xff\xfe"])
def test_meaning_unknown_code_is_none(body):
    assert read(body) is None
