from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvp_target_lvm import names
from provisioner.contracts.errors import VolumeNameError


@pytest.mark.parametrize(
    "name", ["web01", "a", "_x", "+x", ".x", "a.b", "web-01", "x" * 120, "my_snapshot", "0", "A+b_c.d-e"]
)
def test_check_accepts_what_lvm_allows(name: str) -> None:
    names.check("vg0", name)


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "-x", "@tag", "a b", "a/b", "a:b", "a\n", "ü", "snapshot", "snapshot1", "pvmove0", "x_tdata",
        "x_rimage_0", "a_pmspare", "x_cvol", "x_vorigin", "x" * 124, "lvp.x", "lvp.stage.ab",
    ],
)  # fmt: skip
def test_check_rejects_invalid_or_reserved_names(name: str) -> None:
    with pytest.raises(VolumeNameError) as caught:
        names.check("vg0", name)
    assert "\n" not in caught.value.message


def test_check_counts_hyphens_twice() -> None:
    names.check("vg0", "-".join("a" * 41 for _ in range(3))[:120])
    with pytest.raises(VolumeNameError, match="too long"):
        names.check("vg-0", "a-" * 42)
    # vg0, one hyphen, and 123 characters are 127: device-mapper's limit.
    names.check("vg0", "x" * 123)


@given(st.text(max_size=140))
def test_check_accepts_only_safe_names(name: str) -> None:
    try:
        names.check("vg0", name)
    except VolumeNameError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]*", name)
    assert name not in {".", ".."}
    assert len(names.mapper_name("vg0", name)) <= 127


def test_reserved_names_are_valid_for_lvm() -> None:
    for name in (names.STAGE + names.new_token(), names.OLD + "ab", names.base_name("sha256:ab", "qcow2")):
        assert names.is_volume_name(name)


def test_base_name_depends_on_image_and_format() -> None:
    made = {names.base_name(digest, kind) for digest in ("sha256:a", "sha256:b") for kind in ("raw", "qcow2")}
    assert len(made) == 4
    assert names.base_name("sha256:a", "raw") == names.base_name("sha256:a", "raw")


def test_token_of_a_name() -> None:
    assert [names.token_of(f"lvp.{role}.ab") for role in ("stage", "old", "gone", "base")] == ["ab", "ab", "ab", ""]
    assert names.token_of("web01") == ""
