from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from lvp_target_lvm import tags
from provisioner.contracts import Provenance, Signer

ALLOWED = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+./=!:#&-]{0,1023}")
TEXT = st.text(max_size=300)


@given(TEXT, TEXT, st.none() | TEXT, st.floats(0, 1e11), st.text(max_size=60), st.none() | TEXT)
def test_provenance_round_trip(
    job: str, url: str, digest: str | None, created: float, name: str, signed_by: str | None
) -> None:
    provenance = Provenance(job, url, digest, created, signed_by)
    made = tags.for_volume(name, "token", provenance)
    assert all(ALLOWED.fullmatch(tag) for tag in made)
    assert len(set(made)) == len(made)
    # LVM does not keep the order of tags, and users may add their own.
    assert tags.provenance_of(reversed([*made, "backup", "lvp", "lvpx=1", "lvp.odd"])) == provenance


def test_signer_is_readable_in_its_tag() -> None:
    provenance = Provenance("job", "url", None, 1.0, Signer("openpgp", "9D2E" * 10, "a <b@example.com>").tag)
    assert f"lvp.signedby=openpgp:{'9D2E' * 10}" in tags.for_volume("web01", "t1", provenance)


def test_encode_splits_a_long_value() -> None:
    url = "https://images.example.com/" + "a%20é" * 800
    made = tags.encode({"url": url})
    assert len(made) > 10
    assert max(map(len, made)) < 1024
    assert tags.decode(sorted(made, reverse=True)) == {"url": url}


@given(st.lists(st.text(alphabet="lvp.=#0123abXY", max_size=20)))
def test_decode_ignores_foreign_tags(foreign: list[str]) -> None:
    tags.decode(foreign)
    tags.provenance_of([*foreign, tags.MARK])


def test_provenance_without_the_mark() -> None:
    assert tags.provenance_of(["lvp.job=1", "LVP", "lvp2"]) is None


def test_aside_tags_are_separated_from_others() -> None:
    before = tags.for_volume("web01", "t1", Provenance("job-1", "https://a/", None, 1.0))
    added = tags.for_aside("old", "web-01", "t2", "job 2", "0123456789ab")
    assert tags.aside_tags([*before, *added, "mine"]) == added
    assert tags.decode(added) == {"old": "web-01", "by": "t2", "byjob": "job 2", "byowner": "0123456789ab"}
    assert tags.own([*before, "mine"]) == before
