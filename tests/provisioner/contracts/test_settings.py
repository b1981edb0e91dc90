"""Parsing of sizes, durations and references to secrets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.contracts.settings import ByteSize, Duration, SecretRef


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (4096, 4096), ("4096", 4096), ("512 MiB", 512 * 2**20), ("10GiB", 10 * 2**30), ("1.5KiB", 1536),
     (" 2TiB ", 2 * 2**40), ("7B", 7)],
)  # fmt: skip
def test_byte_size_parse(value, expected):
    assert ByteSize.parse(value) == expected


@pytest.mark.parametrize(
    "value", ["", "GiB", "10GB", "10 gib", "-1", -1, True, None, 1.5, "1e3", "10GiB x", [], "1..5MiB"]
)
def test_byte_size_invalid(value):
    with pytest.raises(ValueError, match="10GiB"):
        ByteSize.parse(value)


@given(st.integers(0, 2**60))
def test_byte_size_round_trip(size):
    assert ByteSize.parse(str(ByteSize(size))) == size


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (1.5, 1.5),
        ("30s", 30),
        ("30", 30),
        ("5m", 300),
        ("5 min", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("250ms", 0.25),
    ],
)
def test_duration_parse(value, expected):
    assert Duration.parse(value) == expected


@pytest.mark.parametrize("value", ["", "s", "30 seconds", "-1s", -1, True, None, "1h30m", float("nan"), float("inf")])
def test_duration_invalid(value):
    with pytest.raises(ValueError, match="30s"):
        Duration.parse(value)


@given(st.integers(0, 10**7))
def test_duration_round_trip(seconds):
    assert Duration.parse(str(Duration(seconds))) == seconds


def test_secret_ref_read(tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    assert SecretRef.parse(f"file:{tmp_path}/token").read({}) == "s3cret"
    assert SecretRef.parse("env:TOKEN").read({"TOKEN": "from-env"}) == "from-env"
    assert SecretRef.parse("credential:token").read({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "s3cret"


def test_secret_ref_missing():
    with pytest.raises(KeyError):
        SecretRef.parse("env:TOKEN").read({})
    with pytest.raises(FileNotFoundError):
        SecretRef.parse("file:/nowhere/token").read({})
    with pytest.raises(KeyError):
        SecretRef.parse("credential:token").read({})


@pytest.mark.parametrize(
    "value", ["hunter2", "file:", "file:relative", "env:A B", "credential:../x", "credential:..", 7, None]
)
def test_secret_ref_invalid(value):
    with pytest.raises(ValueError, match="never the secret itself") as caught:
        SecretRef.parse(value)
    assert "hunter2" not in str(caught.value)
