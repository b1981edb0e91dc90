"""Decisions for every state in which a job can die, carried out on a model of a volume group."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvp_target_lvm import tags
from lvp_target_lvm.recovery import Decision, Step, decide, foreign
from tests.plugins.lvp_target_lvm.cases import OWNER, a_pool, aside, base, inventory, ours, plain

if TYPE_CHECKING:
    from lvp_target_lvm.report import Inventory, Lv

STAGED = ours("lvp.stage.t1", "t1", "dead", intended="web01")
NEW = ours("web01", "t1", "dead")
OLD = plain("web01", tags=("customer",))
OLD_TAGGED = aside(OLD, "old", "web01", "t1", "dead")
OLD_ASIDE = replace(OLD_TAGGED, name="lvp.old.t1", active=False)
IN_PLACE_TAGGED = aside(OLD, "inplace", "web01", "t1", "dead")
IN_PLACE = replace(IN_PLACE_TAGGED, name="lvp.stage.t1")
KEEP = tuple(tags.for_keeping(1000.0, 60.0, 4096))
OLD_TO_KEEP = replace(OLD_ASIDE, tags=(*OLD_ASIDE.tags, *KEEP))
KEPT = replace(OLD_TO_KEEP, name="lvp.kept.t1")
# A restore t2 gives KEPT its name again and keeps the present volume.
RESTORE = tuple(tags.for_restore("t2", OWNER))
PRESENT = ours("web01", "t1", "dead", uuid="uuid-present")
PRESENT_TAGGED = replace(PRESENT, tags=(*aside(PRESENT, "old", "web01", "t2", "restore").tags, *KEEP))
PRESENT_ASIDE = replace(PRESENT_TAGGED, name="lvp.old.t2", active=False)
PRESENT_KEPT = replace(PRESENT_ASIDE, name="lvp.kept.t2")
RESTORING = replace(KEPT, tags=(*KEPT.tags, *RESTORE))
RESTORED = replace(RESTORING, name="web01")
GONE = ours("lvp.gone.t9", "t0", "any", intended="web07")


def decided(stock: Inventory, *live: str, untouched: frozenset[str] = frozenset()) -> list[Decision]:
    return decide(
        stock, lambda job, _: job not in live, lambda lv: not lv.is_pool, lambda owner: owner in {"", OWNER}, untouched
    )


def carried_out(stock: Inventory, decisions: list[Decision], steps: int = 99) -> Inventory:
    """Return the inventory after the first ``steps`` steps, as LVM would change it."""
    volumes = dict(stock.volumes)
    for step in [step for decision in decisions for step in decision.steps][:steps]:
        lv = volumes.pop(step.volume)
        if step.what == "rename":
            assert step.words[0] not in volumes, "LVM refuses a name that is taken"
            lv = replace(lv, name=step.words[0])
        elif step.what == "release":
            lv = replace(lv, active=True, tags=tuple(tag for tag in lv.tags if tag not in step.words))
        if step.what != "remove":
            volumes[lv.name] = lv
    return replace(stock, volumes=volumes)


STATES = {
    "staged": ([STAGED], []),
    "staged beside the old one": ([STAGED, OLD], [OLD]),
    "the old one tagged": ([STAGED, OLD_TAGGED], [OLD]),
    "the old one tagged and inactive": ([STAGED, replace(OLD_TAGGED, active=False)], [OLD]),
    "the old one set aside": ([STAGED, OLD_ASIDE], [OLD]),
    "renamed": ([NEW, OLD_ASIDE], [NEW]),
    "done": ([NEW], [NEW]),
    "the new one lost": ([OLD_ASIDE], [OLD]),
    "in place, tagged": ([IN_PLACE_TAGGED], [OLD]),
    "in place, set aside": ([IN_PLACE], []),
    "in place, complete but for the rename": ([replace(STAGED, uuid="uuid-web01")], []),
    "being removed": ([GONE, NEW], [NEW]),
    "renamed, the old one to be kept": ([NEW, OLD_TO_KEEP], [NEW, KEPT]),
    "set aside to be kept": ([STAGED, OLD_TO_KEEP], [OLD]),
    "kept": ([NEW, KEPT], [NEW, KEPT]),
    "kept, the new one removed": ([KEPT], [KEPT]),
    "a kept one being removed": ([replace(KEPT, name="lvp.gone.t8"), NEW], [NEW]),
    "a restore, tagged": ([RESTORING, PRESENT], [RESTORING, PRESENT]),
    "a restore, the present one tagged": ([RESTORING, PRESENT_TAGGED], [RESTORING, PRESENT]),
    "a restore, the present one set aside": ([RESTORING, PRESENT_ASIDE], [RESTORING, PRESENT]),
    "a restore, renamed": ([RESTORED, PRESENT_ASIDE], [OLD, PRESENT_KEPT]),
    "a restore, the present one kept": ([RESTORED, PRESENT_KEPT], [OLD, PRESENT_KEPT]),
    "a restore, done": ([OLD, PRESENT_KEPT], [OLD, PRESENT_KEPT]),
    "a restore to a free name": ([RESTORED], [OLD]),
    "a base under construction": ([replace(base("lvp.stage.t5", "sha256:1", 1.0), uuid="x")], []),
    "a base": ([base("lvp.base.1", "sha256:1", 1.0)], [base("lvp.base.1", "sha256:1", 1.0)]),
    "nothing of ours": ([plain("lvp.stage.zz"), plain("lvp.old.zz"), plain("lvp.gone.zz"), a_pool()],) * 2,
    "the name taken by another": ([OLD_ASIDE, ours("web01", "t7", "later")],) * 2,
}


@pytest.mark.parametrize(("before", "after"), STATES.values(), ids=STATES)
def test_decide_cleans_up_each_state(before: list[Lv], after: list[Lv]) -> None:
    stock = inventory(*before)
    decisions = decided(stock)
    assert carried_out(stock, decisions).volumes == inventory(*after).volumes
    assert all(decision.sentence and "\n" not in decision.sentence for decision in decisions)


@pytest.mark.parametrize(("before", "after"), STATES.values(), ids=STATES)
def test_decide_after_an_interrupted_recovery(before: list[Lv], after: list[Lv]) -> None:
    stock = inventory(*before)
    count = sum(len(decision.steps) for decision in decided(stock))
    for steps in range(count + 1):
        half = carried_out(stock, decided(stock), steps)
        assert carried_out(half, decided(half)).volumes == inventory(*after).volumes


@pytest.mark.parametrize(("before", "after"), STATES.values(), ids=STATES)
def test_decide_after_a_complete_recovery(before: list[Lv], after: list[Lv]) -> None:
    rest = carried_out(inventory(*before), decided(inventory(*before)))
    assert [decision for decision in decided(rest) if decision.steps] == []


# What is being removed has no job; what is kept is at rest.
NOT_AT_WORK = {"being removed", "a kept one being removed", "kept", "kept, the new one removed", "a restore, tagged"}


@pytest.mark.parametrize("name", [name for name in STATES if "removed" not in name.partition("being ")[2]])
def test_decide_ignores_a_running_job(name: str) -> None:
    assert decided(inventory(*STATES[name][0]), "dead", "job-b", "restore") == []


def test_decide_restores_an_untouched_volume() -> None:
    stock = inventory(IN_PLACE)
    decisions = decided(stock, untouched=frozenset({"t1"}))
    assert carried_out(stock, decisions).volumes == inventory(OLD).volumes
    assert decided(stock)[0].steps == (Step("remove", "lvp.stage.t1"),)


def test_decide_reports_a_name_taken_by_another() -> None:
    (decision,) = decided(inventory(*STATES["the name taken by another"][0]))
    assert decision.steps == ()
    assert "left lvp.old.t1 alone" in decision.sentence


def test_decide_ignores_volumes_of_another_kind() -> None:
    assert decide(inventory(STAGED, OLD_ASIDE), lambda *_: True, lambda _: False) == []


@pytest.mark.parametrize("name", [name for name in STATES if name not in {*NOT_AT_WORK, "done", "a base"}])
def test_decide_keeps_volumes_of_others(name: str) -> None:
    """The jobs of another installation are unknown here but may be running."""
    stock = inventory(*(_owned_by_another(lv) for lv in STATES[name][0]))
    decisions = decided(stock)
    assert [decision for decision in decisions if decision.steps] == []
    at_work = foreign(stock, OWNER)
    assert all("another installation (ffffffffffff)" in decision.sentence for decision in decisions)
    assert len(decisions) == len(at_work)
    taken_over = carried_out(stock, decide(stock, lambda *_: True, lambda lv: not lv.is_pool))
    assert set(taken_over.volumes) == {lv.name for lv in STATES[name][1]}


def test_decide_without_an_owner_tag() -> None:
    staged, old = _without_owner(STAGED), _without_owner(OLD_ASIDE)
    assert foreign(inventory(staged, old), OWNER) == {}
    assert carried_out(inventory(staged, old), decided(inventory(staged, old))).volumes == inventory(OLD).volumes


def _owned_by_another(lv: Lv) -> Lv:
    return replace(lv, tags=tuple(tag.replace(f"={OWNER}", "=ffffffffffff") for tag in lv.tags))


def _without_owner(lv: Lv) -> Lv:
    return replace(lv, tags=tuple(tag for tag in lv.tags if "owner=" not in tag))


@given(st.lists(st.sampled_from([STAGED, OLD, OLD_TAGGED, OLD_ASIDE, NEW, IN_PLACE, GONE, a_pool()]), unique=True))
def test_decide_never_removes_users_volumes(volumes: list[Lv]) -> None:
    stock = inventory(*volumes)
    rest = carried_out(stock, decided(stock))
    assert [decision for decision in decided(rest) if decision.steps] == []
    users = {lv.uuid for lv in stock.volumes.values() if not lv.name.startswith("lvp.")}
    assert users <= {lv.uuid for lv in rest.volumes.values()}
