"""The guest is built from Debian's own sources only, in whichever of apt's two formats they stand."""

import pytest

from tests.guest.harness.sources import debian_sources, release

MIRROR = "mirror://debian.test/debian"


def test_the_release_is_read_from_os_release():
    assert release('NAME="Debian"\nVERSION_CODENAME=bookworm\n') == "bookworm"


def test_third_parties_are_left_out():
    """A vendor that serves the same suite has other components; one with main has other suites."""
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


def test_one_line_sources_are_understood():
    chosen = debian_sources(
        {"sources.list": f"deb [signed-by=/k.gpg] {MIRROR} bookworm main contrib # us\n"}, "bookworm"
    )
    assert chosen.split("\n")[:4] == ["Types: deb", f"URIs: {MIRROR}", "Suites: bookworm", "Components: main contrib"]
    assert "Signed-By: /k.gpg" in chosen


def test_a_machine_without_debian_sources_is_told():
    with pytest.raises(RuntimeError, match="no Debian source"):
        debian_sources({"sources.list": "# nothing\n"}, "bookworm")
