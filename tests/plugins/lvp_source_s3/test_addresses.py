import pytest

from lvp_source_s3 import MinioSettings, S3Settings, S3Source
from lvp_source_s3.addresses import Place, place_of
from provisioner.contracts import BackEndContext, ImageUrl

MINIO = MinioSettings(endpoint="https://minio.example.com")
AMAZON = S3Settings(region="eu-central-1")


@pytest.mark.parametrize(
    ("settings", "url", "place"),
    [
        (MINIO, "https://minio.example.com/images/disk", Place("images", "disk", "us-east-1", "")),
        (MINIO, "https://minio.example.com:443/images/a/b%20c", Place("images", "a/b c", "us-east-1", "")),
        (AMAZON, "s3://images/disk", Place("images", "disk", "eu-central-1", "")),
        (AMAZON, "https://images.s3.eu-west-1.amazonaws.com/disk", Place("images", "disk", "eu-west-1", "")),
        (AMAZON, "https://images.s3-eu-west-1.amazonaws.com/disk", Place("images", "disk", "eu-west-1", "")),
        (
            AMAZON,
            "https://images.s3.dualstack.us-gov-west-1.amazonaws.com/d",
            Place("images", "d", "us-gov-west-1", ""),
        ),
        (AMAZON, "https://images.s3.amazonaws.com/disk", Place("images", "disk", "eu-central-1", "")),
        (AMAZON, "https://s3.eu-west-1.amazonaws.com/images/disk", Place("images", "disk", "eu-west-1", "")),
        (AMAZON, "https://s3.cn-north-1.amazonaws.com.cn/images/disk", Place("images", "disk", "cn-north-1", "")),
        (AMAZON, "https://my.dotted.name.s3.eu-west-1.amazonaws.com/d", Place("my.dotted.name", "d", "eu-west-1", "")),
    ],
)
def test_place_of_url_forms(settings, url, place):
    found = place_of(ImageUrl.parse(url), settings)
    assert found is not None
    assert (found.bucket, found.key, found.region) == (place.bucket, place.key, place.region)


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        (MINIO, "http://minio.example.com/images/disk"),
        (MINIO, "https://minio.example.com:9000/images/disk"),
        (MINIO, "https://images.minio.example.com/disk"),
        (MINIO, "https://minio.example.com.evil.example/images/disk"),
        (MINIO, "https://evil-minio.example.com/images/disk"),
        (MINIO, "https://minio.example.com/images/"),
        (MINIO, "https://minio.example.com/images"),
        (MINIO, "https://minio.example.com/"),
        (MINIO, "https://minio.example.com/im%61ges/disk"),
        (MINIO, "https://minio.example.com/UPPER/disk"),
        (MINIO, "https://minio.example.com/images/disk?acl"),
        (MINIO, "https://minio.example.com/images/disk?versionId=1&acl="),
        (MINIO, "s3://images/disk"),
        (AMAZON, "http://images.s3.amazonaws.com/disk"),
        (AMAZON, "https://images.s3.amazonaws.com.evil.example/disk"),
        (AMAZON, "https://images.ec2.amazonaws.com/disk"),
        (AMAZON, "https://s3.amazonaws.com/disk"),
        (AMAZON, "https://images.s3.amazonaws.com:8443/disk"),
        (AMAZON, "s3://im_ages/disk"),
        (AMAZON, "s3://images/disk?X-Amz-Signature=1"),
    ],
)
def test_place_of_foreign_url(settings, url):
    assert place_of(ImageUrl.parse(url), settings) is None


@pytest.mark.parametrize(
    ("settings", "url", "address"),
    [
        (
            MINIO,
            "https://minio.example.com/images/a+b c".replace(" ", "%20"),
            "https://minio.example.com/images/a%2Bb%20c",
        ),
        (MINIO, "https://minio.example.com/images/100%25", "https://minio.example.com/images/100%25"),
        (MINIO, "https://minio.example.com/images/%7e%41%c3%bc", "https://minio.example.com/images/~A%C3%BC"),
        (MINIO, "https://minio.example.com/images/a//b", "https://minio.example.com/images/a//b"),
        (MINIO, "https://minio.example.com/images/a?versionId=x-1", "https://minio.example.com/images/a?versionId=x-1"),
        (AMAZON, "s3://images/disk", "https://images.s3.eu-central-1.amazonaws.com/disk"),
        (AMAZON, "s3://dotted.name/disk", "https://s3.eu-central-1.amazonaws.com/dotted.name/disk"),
        (
            S3Settings(region="cn-north-1", addressing="path"),
            "s3://images/disk",
            "https://s3.cn-north-1.amazonaws.com.cn/images/disk",
        ),
        (
            S3Settings(region="eu-west-1", dual_stack=True),
            "s3://images/disk",
            "https://images.s3.dualstack.eu-west-1.amazonaws.com/disk",
        ),
        (
            S3Settings(endpoint="http://10.0.0.5:9000", addressing="virtual"),
            "s3://images/disk",
            "http://images.10.0.0.5:9000/disk",
        ),
        (S3Settings(endpoint="http://10.0.0.5:9000"), "s3://images/disk", "http://10.0.0.5:9000/images/disk"),
    ],
)
def test_place_url_is_quoted_canonically(settings, url, address):
    """The URL is quoted as it is signed, and parses back to the same place."""
    place = place_of(ImageUrl.parse(url), settings)
    assert place is not None
    assert place.url == address
    again = place_of(ImageUrl.parse(address), settings)
    assert again == place


def test_presigned_url_is_unchanged():
    url = "https://minio.example.com/images/a+b?X-Amz-Algorithm=A&X-Amz-Signature=abc"
    place = place_of(ImageUrl.parse(url), MINIO)
    assert place is not None
    assert (place.url, place.presigned) == (url, True)


def test_place_of_listed_buckets_only():
    settings = S3Settings(buckets=["images", "lab/golden/"])
    owned = ["s3://images/x", "s3://lab/golden/x", "https://lab.s3.amazonaws.com/golden/x", "s3://lab/%67olden/x"]
    foreign = ["s3://other/x", "s3://lab/x", "s3://lab/golden", "s3://lab/goldenx", "s3://images2/x"]
    assert [place_of(ImageUrl.parse(url), settings) is not None for url in owned + foreign] == [True] * 4 + [False] * 5


@pytest.mark.parametrize(
    ("settings", "prefixes"),
    [
        (AMAZON, ["s3://"]),
        (MinioSettings(endpoint="http://10.0.0.5:9000"), ["http://10.0.0.5:9000/"]),
        (S3Settings(buckets=["images", "lab/golden/"]), ["s3://images/", "s3://lab/golden/"]),
    ],
)
def test_prefixes_of_a_source(settings, prefixes, tmp_path):
    assert S3Source(settings, BackEndContext("s3", tmp_path)).prefixes() == prefixes
