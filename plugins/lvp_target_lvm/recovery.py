"""Decides from an inventory how to clean up unfinished work. Pure, and the same after a failed job and after a power
cut.

The steps are ordered so that a power cut between two of them leads to the same decision. A swap goes
through these states, each told by names and tags alone (T is its token):

====  =================  ================  =========================================
what  ``lvp.stage.T``    NAME              ``lvp.old.T``  (has the tags old=NAME, by=T)
====  =================  ================  =========================================
1     new                old               -
2     new                old, tagged by=T  -       maybe inactive
3     new                -                 old     inactive
4     -                  new (token=T)     old     done but for the removal
5     -                  new (token=T)     -
====  =================  ================  =========================================

States 1 to 3 are rolled back, 4 is finished. Overwriting in place goes: the old volume tagged inplace=NAME, renamed to
``lvp.stage.T``, written, its tags replaced, renamed back. Once it may have been written, nothing brings its content
back, and it is removed: half a volume under its name would be worse than none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lvp_target_lvm import names, tags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lvp_target_lvm.report import Inventory, Lv


@dataclass(frozen=True, slots=True)
class Step:
    """One change to one volume. ``release`` takes the tags ``words`` away and activates it."""

    what: Literal["remove", "rename", "release"]
    volume: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done about one leftover, and why: one sentence. No steps: it is left alone."""

    sentence: str
    steps: tuple[Step, ...]


def decide(
    inventory: Inventory,
    is_dead: Callable[[str, str], bool],
    fits_kind: Callable[[Lv], bool],
    is_ours: Callable[[str], bool] = lambda _: True,
    untouched: frozenset[str] = frozenset(),
) -> list[Decision]:
    """Return all decisions.

    ``is_dead(job, token)`` says whether that is no longer worked on, ``fits_kind`` which volumes are this target's,
    ``is_ours`` which owners are: what another installation works on may look dead and be alive. ``untouched`` holds
    tokens of volumes set aside to be overwritten that no byte was written to.
    """
    mine = [lv for lv in inventory.volumes.values() if fits_kind(lv)]
    # What was set aside first: where it goes back decides nothing about the staged volume, which goes in any case.
    aside = [decision for lv in mine for decision in _aside(lv, inventory, is_dead, is_ours, untouched)]
    return aside + [decision for lv in mine for decision in _left(lv, is_dead, is_ours)]


def foreign(inventory: Inventory, known: str) -> dict[str, str]:
    """Return the owners of volumes that installations other than ``known`` work on or left, by volume."""
    owners = {lv.name: _owner_at_work(lv) for lv in inventory.volumes.values()}
    return {name: owner for name, owner in owners.items() if owner not in {"", known}}


def _owner_at_work(lv: Lv) -> str:
    """The installation that builds or replaces ``lv``; empty if none does, or it is of a time before owners."""
    if "by" in lv.noted:
        return lv.noted.get("byowner", "")
    return lv.noted.get("owner", "") if lv.ours and lv.name.startswith(names.STAGE) else ""


def _aside(
    lv: Lv,
    inventory: Inventory,
    is_dead: Callable[[str, str], bool],
    is_ours: Callable[[str], bool],
    untouched: frozenset[str],
) -> Iterator[Decision]:
    noted = lv.noted
    token, name, job = noted.get("by", ""), noted.get("old") or noted.get("inplace") or "", noted.get("byjob", "")
    if not token or not name or not is_dead(job, token):
        return
    if not is_ours(owner := _owner_at_work(lv)):
        yield Decision(f"left {lv.name} alone: another installation ({owner}) is replacing {name}", ())
    elif lv.name == name or not lv.name.startswith(names.OWN):
        yield Decision(f"released {lv.name}, which job {job} was about to replace", (_release(lv, lv.name),))
    elif "inplace" in noted:
        yield _written(lv, name, job, free=name not in inventory.volumes, untouched=token in untouched)
    else:
        yield _swapped(lv, name, job, inventory.volumes.get(name), token)


def _swapped(lv: Lv, name: str, job: str, holder: Lv | None, token: str) -> Decision:
    if holder is None:
        return Decision(
            f"gave {name} its old volume back, which job {job} had set aside and not replaced",
            (Step("rename", lv.name, (name,)), _release(lv, name)),
        )
    if holder.noted.get("token") == token:
        return Decision(
            f"removed the old volume of {name} ({lv.name}), which job {job} had replaced", (Step("remove", lv.name),)
        )
    return Decision(
        f"left {lv.name} alone: it was {name} before job {job}, but another volume has that name now; "
        "rename or remove it by hand",
        (),
    )


def _written(lv: Lv, name: str, job: str, *, free: bool, untouched: bool) -> Decision:
    if untouched and free:
        return Decision(
            f"gave {name} back, which job {job} had not begun to overwrite",
            (Step("rename", lv.name, (name,)), _release(lv, name)),
        )
    return Decision(
        f"removed {name} ({lv.name}), which job {job} was overwriting in place: its old content was lost already",
        (Step("remove", lv.name),),
    )


def _left(lv: Lv, is_dead: Callable[[str, str], bool], is_ours: Callable[[str], bool]) -> Iterator[Decision]:
    """Staged volumes, and removed ones that are still there. The latter go also if another installation made them."""
    if not lv.ours or "by" in lv.noted:
        return
    job, name = lv.noted.get("job", ""), lv.noted.get("name", "")
    if lv.name.startswith(names.STAGE) and is_dead(job, names.token_of(lv.name)):
        if is_ours(owner := _owner_at_work(lv)):
            yield Decision(f"removed {lv.name}, staged for {name} by job {job}", (Step("remove", lv.name),))
        else:
            yield Decision(f"left {lv.name} alone: it belongs to another installation ({owner})", ())
    elif lv.name.startswith(names.GONE) and is_dead("", names.token_of(lv.name)):
        yield Decision(f"removed {lv.name}, which was {name} and was being removed", (Step("remove", lv.name),))


def _release(lv: Lv, name: str) -> Step:
    return Step("release", name, tuple(tags.aside_tags(lv.tags)))
