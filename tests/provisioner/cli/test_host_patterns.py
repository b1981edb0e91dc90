"""Tests of patterns of host names."""

from __future__ import annotations

import pytest

from provisioner.cli.host_patterns import MOST, PatternError, expand, split


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("kvm-1", ["kvm-1"]),
        ("kvm-[01-03]", ["kvm-01", "kvm-02", "kvm-03"]),
        ("kvm-[9-11]", ["kvm-9", "kvm-10", "kvm-11"]),
        ("kvm-[08-11]", ["kvm-08", "kvm-09", "kvm-10", "kvm-11"]),
        ("[1,3,5-6].x", ["1.x", "3.x", "5.x", "6.x"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("a[1,1]", ["a1"]),
        ("https://[::1]:8080", ["https://[::1]:8080"]),
        ("https://[fe80::1%eth0]", ["https://[fe80::1%eth0]"]),
        ("https://kvm-[1-2]:8080", ["https://kvm-1:8080", "https://kvm-2:8080"]),
    ],
)
def test_expand(pattern, names):
    assert expand(pattern) == names


@pytest.mark.parametrize(
    "pattern", ["a[3-1]", "a[]", "a[x]", "a[1-]", "a[-1]", "a[1-2-3]", "a[1;2]", "a[0-99999999999999999]", "a[٣-٤]"]
)
def test_expand_invalid(pattern):
    with pytest.raises(PatternError):
        expand(pattern)


def test_expand_is_bounded():
    """Also the product of small ranges, and before it is made."""
    assert len(expand("a[1-10000]")) == MOST
    with pytest.raises(PatternError, match="more than 10,000 hosts"):
        expand("[0-9]" * 40)


@pytest.mark.parametrize(
    ("text", "items"),
    [("a", ["a"]), ("a, b", ["a", "b"]), ("a[1,2],b", ["a[1,2]", "b"]), ("x[1,2]y[3,4]", ["x[1,2]y[3,4]"])],
)
def test_split(text, items):
    assert split(text) == items


@pytest.mark.parametrize("text", ["", " ", "a,,b", "a,", "a[1", "a]", "a[[1]]", "a]1["])
def test_split_invalid(text):
    with pytest.raises(PatternError):
        split(text)
