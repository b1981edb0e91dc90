from __future__ import annotations

from dataclasses import replace

from lvp_target_lvm import tags
from lvp_target_lvm.bases import bases_in, eviction_order
from tests.plugins.lvp_target_lvm.cases import a_pool, base, inventory, ours, plain, provenance

OLD, MID, NEW = (base(f"lvp.base.{n}", f"sha256:{n}", created) for n, created in ((1, 10.0), (2, 20.0), (3, 30.0)))


def test_bases_are_the_committed_ones_of_the_pool() -> None:
    others = (
        base("lvp.base.9", "sha256:9", 1.0, pool="other"),
        base("lvp.stage.7", "sha256:7", 1.0),
        plain("lvp.base.8", pool="pool"),
        ours("web01", pool="pool"),
        a_pool(),
    )
    assert bases_in(inventory(OLD, NEW, *others), "pool") == [OLD, NEW]


def test_eviction_starts_with_the_oldest_base() -> None:
    assert eviction_order(inventory(NEW, OLD, MID), "pool", {}, set()) == [OLD, MID, NEW]


def test_eviction_counts_a_clone_as_a_use() -> None:
    clone = replace(plain("web01"), tags=tuple(tags.for_volume("web01", "t", provenance("job-1", "sha256:1", 25.0))))
    assert eviction_order(inventory(NEW, OLD, MID, clone), "pool", {}, set()) == [MID, OLD, NEW]


def test_eviction_with_recent_and_pinned_bases() -> None:
    used = {"lvp.base.1": 99.0}
    assert eviction_order(inventory(NEW, OLD, MID), "pool", used, {"lvp.base.2"}) == [NEW, OLD]


def test_eviction_with_a_malformed_created_tag() -> None:
    malformed = replace(OLD, tags=(*tuple(tag for tag in OLD.tags if "created" not in tag), "lvp.created=yesterday"))
    assert eviction_order(inventory(malformed, NEW), "pool", {}, set()) == [malformed, NEW]
