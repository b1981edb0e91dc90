"""Decides from an inventory how to clean up unfinished work, after a failed job as after a power cut. Pure.

The steps are ordered so that a power cut between two of them leads to the same decision. A swap passes through these
states, which differ in names and tags alone (T is its token):

====  =================  ================  =========================================
what  ``lvp.stage.T``    NAME              ``lvp.old.T``  (has the tags old=NAME, by=T)
====  =================  ================  =========================================
1     new                old               -
2     new                old, tagged by=T  -       maybe inactive
3     new                -                 old     inactive
4     -                  new (token=T)     old     to be removed
5     -                  new (token=T)     -
====  =================  ================  =========================================

States 1 to 3 are rolled back, 4 is finished. If the old volume is to be kept (it has the tag keptuntil), it is not
removed but renamed to ``lvp.kept.T``. A restore passes through the same states. Its new volume is ``lvp.kept.K``, which
is tagged restoring=T first and released at the end; if the restore is rolled back, it stays kept.

To overwrite a volume in place, it is tagged inplace=NAME, renamed to ``lvp.stage.T``, written, tagged anew and renamed
back. Once it may have been written to, its content is lost, and it is removed: a half-written volume under its name
would be worse than none.
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
    """One change to one volume. ``release`` removes the tags ``words`` and activates the volume."""

    what: Literal["remove", "rename", "release"]
    volume: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """The steps for one leftover and a sentence that explains them. Without steps, the leftover stays."""

    sentence: str
    steps: tuple[Step, ...]


def decide(
    inventory: Inventory,
    is_dead: Callable[[str, str], bool],
    fits_kind: Callable[[Lv], bool],
    is_ours: Callable[[str], bool] = lambda _: True,
    untouched: frozenset[str] = frozenset(),
) -> list[Decision]:
    """Return the decisions for all leftovers of the group.

    - ``is_dead(job, token)``: whether that job or staging has ended.
    - ``fits_kind``: whether a volume is of this target's kind.
    - ``is_ours``: whether an owner is this installation. The jobs of others are unknown here and may be running.
    - ``untouched``: tokens of volumes that were set aside to be overwritten, but not written to.
    """
    mine = [lv for lv in inventory.volumes.values() if fits_kind(lv)]
    # Finish with volumes under names of ours first: a restored volume loses its tag only after the one it replaced.
    mine.sort(key=lambda lv: not lv.name.startswith(names.OWN))
    # Restore volumes set aside first. The staged volumes are removed in any case.
    aside = [decision for lv in mine for decision in _aside(lv, inventory, is_dead, is_ours, untouched)]
    return aside + [decision for lv in mine for decision in _left(lv, is_dead, is_ours)]


def foreign(inventory: Inventory, known: str) -> dict[str, str]:
    """Return the unfinished volumes of installations other than ``known``, each with its owner."""
    owners = {lv.name: _owner_at_work(lv) for lv in inventory.volumes.values()}
    return {name: owner for name, owner in owners.items() if owner not in {"", known}}


def _owner_at_work(lv: Lv) -> str:
    """Return the installation that builds or replaces ``lv``; empty if there is none or no owner was recorded."""
    if lv.name.startswith((names.KEPT, names.GONE)):
        return ""
    if "by" in lv.noted:
        return lv.noted.get("restorer") or lv.noted.get("byowner", "")
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
    if not token or not name or not is_dead(job, token) or lv.name.startswith((names.KEPT, names.GONE)):
        return
    if not is_ours(owner := _owner_at_work(lv)):
        yield Decision(f"left {lv.name} alone: another installation ({owner}) is replacing {name}", ())
    elif lv.name == name and "restoring" in noted:
        yield Decision(f"finished restoring {name}", (_release(lv, name),))
    elif lv.name == name or not lv.name.startswith(names.OWN):
        yield Decision(f"kept {lv.name}, which job {job} had not replaced yet", (_release(lv, lv.name),))
    elif "inplace" in noted:
        yield _written(lv, name, job, free=name not in inventory.volumes, untouched=token in untouched)
    else:
        yield _swapped(lv, name, job, inventory.volumes.get(name), token)


def _swapped(lv: Lv, name: str, job: str, holder: Lv | None, token: str) -> Decision:
    if holder is None:
        return Decision(
            f"restored {name}, which job {job} had set aside but not replaced yet",
            (Step("rename", lv.name, (name,)), _release(lv, name)),
        )
    if token in {holder.noted.get("token"), holder.noted.get("restoring")}:
        if "keptuntil" in lv.noted:
            kept_as = names.KEPT + token
            return Decision(
                f"kept the old volume of {name} as {kept_as}, which job {job} had replaced",
                (Step("rename", lv.name, (kept_as,)),),
            )
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
            f"restored {name}, which job {job} had not started to overwrite",
            (Step("rename", lv.name, (name,)), _release(lv, name)),
        )
    return Decision(
        f"removed {name} ({lv.name}), which job {job} was overwriting in place: its old content was already lost",
        (Step("remove", lv.name),),
    )


def _left(lv: Lv, is_dead: Callable[[str, str], bool], is_ours: Callable[[str], bool]) -> Iterator[Decision]:
    """Yield decisions for staged volumes and unfinished removals. The latter are finished for any installation."""
    job, name = lv.noted.get("job", ""), lv.noted.get("old") or lv.noted.get("name", "")
    if lv.name.startswith(names.GONE) and (lv.ours or "keptuntil" in lv.noted):
        if is_dead("", names.token_of(lv.name)):
            yield Decision(f"removed {lv.name}: the removal of {name} was not finished", (Step("remove", lv.name),))
    elif not lv.ours or "by" in lv.noted:
        return
    elif lv.name.startswith(names.STAGE) and is_dead(job, names.token_of(lv.name)):
        if is_ours(owner := _owner_at_work(lv)):
            purpose = f"to resize {name}" if lv.noted.get("use") == tags.GROWTH else f"for {name} by job {job}"
            yield Decision(f"removed {lv.name}, staged {purpose}", (Step("remove", lv.name),))
        else:
            yield Decision(f"left {lv.name} alone: it belongs to another installation ({owner})", ())


def _release(lv: Lv, name: str) -> Step:
    return Step("release", name, tuple(tags.aside_tags(lv.tags)))
