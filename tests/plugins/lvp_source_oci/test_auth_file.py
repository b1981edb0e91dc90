"""Tests of logins in files such as Docker's config.json."""

import base64
import json

import pytest

from lvp_source_oci.auth_file import login_for
from lvp_source_oci.reference import parse
from provisioner.contracts import ImageUrl, SecretRef
from provisioner.contracts.errors import SourceError


def auth(text):
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.fixture
def found(tmp_path):
    """Return a function that looks up the login for a URL in a document."""

    def look(document, url="oci://ghcr.io/team/image:1"):
        path = tmp_path / "auth.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return login_for(parse(ImageUrl.parse(url)), SecretRef(f"file:{path}"))

    return look


def test_most_specific_login(found):
    logins = {"ghcr.io": auth("a:1"), "ghcr.io/team": auth("b:2"), "ghcr.io/team/other": auth("c:3")}
    assert found({"auths": logins}) == "b:2"
    assert found({"auths": logins}, "oci://quay.io/team/image:1") is None


def test_docker_hub_login(found):
    document = {"auths": {"https://index.docker.io/v1/": auth("a:1")}}
    assert found(document, "docker://docker.io/debian:12") == "a:1"


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({"credHelpers": {"ghcr.io": "secretservice"}}, "'secretservice'"),
        ({"auths": {"ghcr.io": {}}, "credsStore": "pass"}, "'pass'"),
        ({"auths": {"ghcr.io": {"identitytoken": "secret-word"}}}, "identity token"),
        ({"auths": {"ghcr.io": {"auth": "!secret-word"}}}, "malformed login"),
        ({"auths": {"ghcr.io": auth("secret-word")}}, "malformed login"),
        ('{"auths": "secret-word"', "not a file of logins"),
    ],
)
def test_unusable_login(found, document, match):
    with pytest.raises(SourceError, match=match) as raised:
        found(document)
    assert "secret-word" not in str(raised.value)


def test_missing_file(tmp_path):
    with pytest.raises(SourceError, match="cannot be read"):
        login_for(parse(ImageUrl.parse("oci://ghcr.io/a:1")), SecretRef(f"file:{tmp_path}/none"))
