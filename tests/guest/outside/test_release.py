"""Guests of both releases are built from this machine's mirrors."""

from tests.guest.harness.sources import as_release, debian_sources

MIRROR = "mirror://bookworm.test/debian"


def test_sources_of_another_release():
    """The suites change but the mirror's name does not."""
    texts = {
        "debian.sources": f"Types: deb\nURIs: {MIRROR}\nSuites: bookworm bookworm-updates\nComponents: main\n",
        "security.list": f"deb {MIRROR}-security bookworm-security main\n",
    }
    chosen = debian_sources(as_release(texts, "bookworm", "trixie"), "trixie")
    assert f"URIs: {MIRROR}\n" in chosen
    assert "Suites: trixie trixie-updates\n" in chosen
    assert f"URIs: {MIRROR}-security\n" in chosen
    assert "Suites: trixie-security\n" in chosen
