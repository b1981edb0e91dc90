"""The guest is built only from Debian's own sources, in either of apt's two formats."""

import pytest

from tests.guest.harness.sources import debian_sources, release

MIRROR = "mirror://debian.test/debian"


def test_release_from_os_release():
    assert release('NAME="Debian"\nVERSION_CODENAME=bookworm\n') == "bookworm"


def test_sources_of_third_parties_are_left_out():
    """One vendor uses the same suite with another component, the other one `main` in another suite."""
    texts = {
        "debian.sources": f"# comment\nTypes: deb deb-src\nURIs: {MIRROR}\nSuites: bookworm bookworm-updates\n"
        "Components: main contrib\nSigned-By: /usr/share/keyrings/debian.gpg\n\n"
        f"Types: deb\nEnabled: no\nURIs: {MIRROR}\nSuites: bookworm\nComponents: main\n",
        "vendor.list": "deb [arch=amd64 signed-by=/k.gpg] mirror://vendor.test bookworm stable\n",
        "other.sources": "Types: deb\nURIs: mirror://other.test\nSuites: nodistro\nComponents: main\n",
    }
    chosen = debian_sources(texts, "bookworm")
    assert chosen.count("URIs:") == 1
    assert f"URIs: {MIRROR}\n" in chosen
    assert "Signed-By: /usr/share/keyrings/debian.gpg" in chosen


def test_sources_in_the_one_line_format():
    chosen = debian_sources(
        {"sources.list": f"deb [signed-by=/k.gpg] {MIRROR} bookworm main contrib # us\n"}, "bookworm"
    )
    assert chosen.split("\n")[:4] == ["Types: deb", f"URIs: {MIRROR}", "Suites: bookworm", "Components: main contrib"]
    assert "Signed-By: /k.gpg" in chosen


def test_sources_without_debians_own():
    with pytest.raises(RuntimeError, match="no Debian source"):
        debian_sources({"sources.list": "# nothing\n"}, "bookworm")
