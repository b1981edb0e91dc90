"""Decides from the images of a pool how to clean up unfinished work, after a failed job as after a power cut. Pure.

A swap passes through these states, which differ in names alone (T is its token, the owner is left out):

====  ===============  ======  =============  ======================================
what  ``lvp.stage.T``  NAME    ``lvp.old.T``
====  ===============  ======  =============  ======================================
1     new              old     -              remove the staged image
2     new              -       old            give the old one its name, remove the staged one
3     -                new     old            keep the old one, or remove it if it is not to be kept
4     -                other   old            another host took the name: keep the old one
====  ===============  ======  =============  ======================================

A restore is a swap whose new image is ``lvp.kept.K``. A rename can stop half-way, with two names for one image. One of
them is the directory's; the other one is forgotten first, and never leads to a removal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lvp_target_rbd import names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from lvp_target_rbd.records import Image

# Seconds for which a volume is kept whose name was taken by another host in the middle of a swap.
_LOST_NAME = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Step:
    """One call of ``image_calls.py``."""

    call: str
    arguments: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Decision:
    """The steps for one leftover and a sentence that explains them. Without steps, the leftover stays."""

    sentence: str
    steps: tuple[Step, ...]


def candidates(
    tokens: Iterable[tuple[str, str]], images: Mapping[str, Image], owner: str | None, live: Collection[str] = ()
) -> dict[str, set[str]]:
    """Return the names that half a rename of ``owner``, or of every owner (None), may have left.

    Each has the ids to which it then leads; a name with a token, which is unique, has none. With another id, a
    name may just be given by another host. ``tokens`` are further pairs of owner and token; ``live`` tokens are left
    out, because their renames may be under way.
    """
    found: dict[str, set[str]] = {}
    known = set(tokens)
    for image in images.values():
        if (working := image.working) is not None and owner in {None, working.owner} and working.token not in live:
            known.add((working.owner, working.token))
            if image.aside is not None:
                found.setdefault(image.aside.name, set()).update({image.id, image.aside.new} - {""})
            if name := str(image.tags.get("name", "")):
                found.setdefault(name, set()).add(image.id)
        for one, token in _noted(image):
            if owner in {None, one} and token not in live:
                known.add((one, token))
    unique = {names.Working(role, one, token).name for one, token in known for role in ("stage", "old", "gone")}
    unique |= {names.KEPT + token for _, token in known}
    return found | {name: set() for name in unique}


def _noted(image: Image) -> Iterator[tuple[str, str]]:
    """Yield the owners and tokens of what made an image, and of what set it aside."""
    if image.tags.get("owner") and image.tags.get("token"):
        yield str(image.tags["owner"]), str(image.tags["token"])
    if image.aside is not None and image.aside.owner and image.aside.token:
        yield image.aside.owner, image.aside.token


def decide(
    images: Mapping[str, Image], is_dead: Callable[[str, str], bool], owner: str | None, now: float
) -> list[Decision]:
    """Return the decisions for all leftovers of ``owner``, or of every owner (None).

    ``is_dead(job, token)`` returns whether that job or staging has ended. What other owners left is only reported.
    """
    found: list[Decision] = []
    # Volumes that were set aside first: their staged images are removed in any case.
    for role in ("old", "gone", "stage"):
        for image in images.values():
            working = image.working
            if working is not None and working.role == role:
                found += _one(image, working, images, is_dead, owner, now)
    return found


def _one(
    image: Image,
    working: names.Working,
    images: Mapping[str, Image],
    is_dead: Callable[[str, str], bool],
    owner: str | None,
    now: float,
) -> Iterator[Decision]:
    if owner not in {None, working.owner}:
        # One that is open is in good hands, and one that is going stays while it has clones.
        if not image.watchers and working.role != "gone":
            yield Decision(f"left {image.name} alone: it belongs to another installation ({working.owner})", ())
        return
    job = image.aside.job if image.aside and working.role != "stage" else str(image.tags.get("job", ""))
    if not is_dead(job, working.token):
        return
    if working.role == "stage":
        name = image.tags.get("name", "a volume")
        yield Decision(f"removed {image.name}, staged for {name} by job {job}", (_remove(image),))
    elif working.role == "gone":
        yield from _gone(image, images, now)
    else:
        yield _swapped(image, working, images, now)


def _gone(image: Image, images: Mapping[str, Image], now: float) -> Iterator[Decision]:
    if image.aside is not None and image.watchers:  # opened before it lost its name: it stays
        opened = "which was opened while it was being removed"
        if image.aside.until:
            kept_as = names.KEPT + image.name.rpartition(".")[2]
            yield Decision(f"kept {image.aside.name} as {kept_as}, {opened}", (_rename(image, kept_as),))
        else:
            yield _returned(image, images, now, opened)
    elif not image.clones:
        what = image.aside.name if image.aside else str(image.tags.get("name", ""))
        yield Decision(f"removed {image.name}: the removal of {what} was not finished", (_remove(image),))


def _swapped(image: Image, working: names.Working, images: Mapping[str, Image], now: float) -> Decision:
    aside = image.aside
    if aside is None:
        return Decision(f"left {image.name} alone: nothing says which volume it was", ())
    holder = images.get(aside.name)
    if holder is not None and holder.id == aside.new:
        if not aside.until:
            text = f"removed the old volume of {aside.name} ({image.name}), which job {aside.job} had replaced"
            return Decision(text, (_remove(image),))
        kept_as = names.KEPT + working.token
        text = f"kept the old volume of {aside.name} as {kept_as}, which job {aside.job} had replaced"
        return Decision(text, (_rename(image, kept_as),))
    return _returned(image, images, now, f"which job {aside.job} had set aside but not replaced yet")


def _returned(image: Image, images: Mapping[str, Image], now: float, why: str) -> Decision:
    """Give an image its name again, or keep it aside if another one has the name now."""
    aside, working = image.aside, image.working
    assert aside is not None
    assert working is not None
    if aside.name not in images:
        step = Step("put_back", {"aside": image.name, "image_id": image.id, "name": aside.name})
        return Decision(f"restored {aside.name}, {why}", (step,))
    kept_as = names.KEPT + working.token
    kept = replace(aside, until=max(aside.until, now + _LOST_NAME))
    note = Step("note", {"name": image.name, "image_id": image.id, "aside": kept.text()})
    text = f"kept the earlier volume {aside.name} as {kept_as}: another one has its name now"
    return Decision(text, (note, _rename(image, kept_as)))


def _remove(image: Image) -> Step:
    return Step("remove", {"name": image.name, "image_id": image.id})


def _rename(image: Image, name: str) -> Step:
    return Step("rename", {"source": image.name, "name": name, "image_id": image.id})
